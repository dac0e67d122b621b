"""Exponential, sine and cosine from additions and multiplications alone.

IEEE 754 rounds these operations one way only, while the last bit of a library's `exp` and `sin` may depend on the
machine's vector instructions and on a number's place in its array. A view's parameters must depend on neither.
"""

import numpy as np
from jaxtyping import Float64

Numbers = Float64[np.ndarray, "*shape"]


def exponential(x: Numbers) -> Numbers:
    """e^x = (e^(x/16))^16, the inner one by its Taylor series; relative error below 1e-9 for |x| <= 8."""
    reduced = x / 16.0
    result = np.ones_like(x)
    for term in range(10, 0, -1):
        result = result * reduced / term + 1.0
    for _ in range(4):
        result = result * result
    return result


def sine_and_cosine(x: Numbers) -> tuple[Numbers, Numbers]:
    """sin x and cos x from the Taylor series at x / 4, doubled twice; error below 1e-9 for |x| <= pi (radians)."""
    reduced = x / 4.0
    square = reduced * reduced
    sine, cosine = np.ones_like(x), np.ones_like(x)
    for term in range(14, 0, -2):
        sine = 1.0 - sine * square / (term * (term + 1))
        cosine = 1.0 - cosine * square / (term * (term - 1))
    sine = sine * reduced
    for _ in range(2):
        sine, cosine = 2.0 * sine * cosine, 1.0 - 2.0 * sine * sine
    return sine, cosine
