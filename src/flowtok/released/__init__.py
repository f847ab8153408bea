"""The authors' released checkpoints as whole models: files in, a model folder out, and the files back.

Start with importing.py. What the released names mean is in checkpoints/official.py, the command in app/importing.py.
"""
