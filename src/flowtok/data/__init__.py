"""Pictures, captions and data sets on disk; knows no network and no training stage.

Start with `emoji` (the captioned set that the shipped model learns from), `images` (opening any picture safely)
or `captions` (the wording).
"""
