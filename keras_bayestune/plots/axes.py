"""The Axes that a plot draws on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def new_axes(width: float, height: float) -> "Axes":
    """Axes of a new pyplot figure, which stays open until the caller closes it.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure's only Axes; its layout keeps labels and legends uncut.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> from keras_bayestune.plots.axes import new_axes
        >>> axes = new_axes(6, 4)
        >>> [float(inches) for inches in axes.figure.get_size_inches()]
        [6.0, 4.0]
        >>> plt.close(axes.figure)
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Install it with "
            "`pip install matplotlib`."
        ) from error
    _, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return axes


def even_ticks(axis: "Axis", low: float, high: float) -> None:
    """Have a logarithmic axis show decades, or fewer and even steps of less than two.

    Matplotlib's own labels of minor ticks come and go, at uneven places.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: Smallest value shown, > 0.
        high: Largest value shown.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if low == high:
        return
    steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    narrow = high < 5 * low
    axis.set_major_locator(
        MaxNLocator(5) if narrow else LogLocator(subs=steps, numticks=12)
    )
    axis.set_minor_formatter(NullFormatter())


def percent(fraction: float) -> str:
    """Fraction as a label: `percent(0.005)` is `"0.5 %"`.

    Args:
        fraction: From 0 to 1.

    Returns:
        Three significant digits, a space and the per cent sign.
    """
    return f"{100 * fraction:.3g} %"
