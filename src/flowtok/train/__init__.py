"""Training: one loop, and a stage for each network.

Start with loop.py; a stage (tokenizer.py, text.py, flow.py, captioner.py) says what is trained and what a loss is.
"""
