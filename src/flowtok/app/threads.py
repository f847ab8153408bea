"""Where a program computes matters: one helper for programs whose model computes in a thread of its own.

Knows no model. The thread that computes is batching.py's.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def aside(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Calls a function in a thread that ends with it, and waits.

    OpenMP keeps the helpers of every living thread that has computed. Where all of them are more than the processors,
    they sleep between any two loops instead of waiting awake, and a picture takes nearly twice as long
    (docs/lab-notes.md). So whoever computes once, before the thread that computes always, does it here.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments, **options).result()
