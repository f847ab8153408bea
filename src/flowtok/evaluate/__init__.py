"""Measures of a model: how true its pictures, how findable what it draws, how right its words.

Start with `tasks.measure`, which runs named tasks on a model; the scores themselves are plain functions of tensors and
strings in `reconstruction`, `retrieval` and `captions`, and what is kept of a measurement is a `report.Record`.
"""
