"""Layers that two rooms share: attention, rotary positions, blocks, embeddings and the Gaussian posterior.

Nothing here knows what a token stands for; see image/, text/ and flow/ for the networks.
"""
