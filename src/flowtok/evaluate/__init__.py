"""Measures of a model: how true its pictures, how findable what it draws, how right its words.

Start with `tasks.measure`, which runs named tasks on a model. The scores themselves are plain functions of tensors and
strings: `reconstruction`, `fid`, `retrieval`, `captions`, `coco_captions`, `clip`. What is kept of a measurement is a
`report.Record`; two of them side by side are in `compare`, all of them with pictures in `page`. Protocols, data and
commands: docs/evaluation.md.
"""
