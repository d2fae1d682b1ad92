"""The error function, which NumPy does not have.

Four ranges of |x|, a rational function in each, after W. J. Cody's scheme with the coefficients that Sun published
in fdlibm (s_erf.c, 1993). Within 1 unit in the last place of float64; float32 is rounded from it.
"""

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel

# Numerator and denominator, lowest power first; see `_ratio`.
_NEAR_0 = (
    (1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02,
     -5.77027029648944159157e-03, -2.37630166566501626084e-05),
    (1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03,
     1.32494738004321644526e-04, -3.96022827877536812320e-06),
)  # fmt: skip
_NEAR_1 = (
    (-2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01,
     3.18346619901161753674e-01, -1.10894694282396677476e-01, 3.54783043256182359371e-02,
     -2.16637559486879084300e-03),
    (1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02,
     1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02),
)  # fmt: skip
_TO_2_86 = (
    (-9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e+01,
     -6.23753324503260060396e+01, -1.62396669462573470355e+02, -1.84605092906711035994e+02,
     -8.12874355063065934246e+01, -9.81432934416914548592e+00),
    (1.0, 1.96512716674392571292e+01, 1.37657754143519042600e+02, 4.34565877475229228821e+02,
     6.45387271733267880336e+02, 4.29008140027567833386e+02, 1.08635005541779435134e+02,
     6.57024977031928170135e+00, -6.04244152148580987438e-02),
)  # fmt: skip
_TO_6 = (
    (-9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e+01,
     -1.60636384855821916062e+02, -6.37566443368389627722e+02, -1.02509513161107724954e+03,
     -4.83519191608651397019e+02),
    (1.0, 3.03380607434824582924e+01, 3.25792512996573918826e+02, 1.53672958608443695994e+03,
     3.19985821950859553908e+03, 2.55305040643316442583e+03, 4.74528541206955367215e+02,
     -2.24409524465858183362e+01),
)  # fmt: skip
_ERF_1 = 8.45062911510467529297e-01  # erf(1), to the bits of a float32


def _ratio(x: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    top, bottom = (np.full_like(x, c[-1]) for c in coefficients)
    for total, series in ((top, coefficients[0]), (bottom, coefficients[1])):
        for c in series[-2::-1]:
            total *= x
            total += c
    return top / bottom


@Kernel
def erf(x: Array) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x; NaN stays NaN."""
    xp = namespace(x)
    if xp is not np:
        from cupyx.scipy.special import erf as cuda_erf

        return cuda_erf(x)
    wide = np.asarray(x, dtype=np.float64)
    a = np.abs(wide)
    y = np.where(np.isnan(a), np.nan, np.ones_like(a))
    small = a < 0.84375
    s = wide[small]
    y[small] = np.abs(s + s * _ratio(s * s, _NEAR_0))
    middle = (a >= 0.84375) & (a < 1.25)
    y[middle] = _ERF_1 + _ratio(a[middle] - 1, _NEAR_1)
    for low, high, coefficients in ((1.25, 1 / 0.35, _TO_2_86), (1 / 0.35, 6.0, _TO_6)):
        here = (a >= low) & (a < high)
        t = a[here]
        head = t.astype(np.float32).astype(np.float64)  # exp(-t^2) in two exact steps
        exponent = np.exp(-head * head - 0.5625) * np.exp(
            (head - t) * (head + t) + _ratio(1 / (t * t), coefficients)
        )
        y[here] = 1 - exponent / t
    return np.copysign(y, wide).astype(x.dtype, copy=False)
