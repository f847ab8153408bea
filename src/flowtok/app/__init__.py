"""What faces a user: the command line.

Start with cli.py. Every command imports what is heavy only when it runs.
"""
