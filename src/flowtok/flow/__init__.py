"""The flow between two sets of tokens: the path, the network that learns its velocity, guidance and solvers.

Knows neither images nor text: both ends are tokens (B, L, C), t = 0 at one and t = 1 at the other. Start with path.py.
"""
