"""The image side: pictures to tokens and back.

Knows nothing of text models or of the flow; start with tokenizer.py.
"""
