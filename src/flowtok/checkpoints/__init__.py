"""Model folders on disk: which there are (catalogue), what they say (folder), the weights in them (store).

`store` is the one door: it offers the names of all three. Released files of the authors are read by `official`.
"""
