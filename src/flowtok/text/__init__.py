"""The text side: words to features, features to tokens, tokens to words.

Knows neither images nor the flow; start with encoder.py.
"""
