"""What the notebooks show: widgets and plots. The core of inflib never imports this package.

base               what every widget shares: error area, busy state, still
strip              a row of pictures to click on
answer             what the image browser shows, as plain values, text, HTML and CSV
image_influence    questions about images, answered from a TrainIndex
browser            the image browser
ladder             the ladder of curvatures
plots              figures in one style
"""

from .browser import ImageBrowser
from .image_influence import ImageInfluence, three_methods
from .ladder import Ladder, Rungs

__all__ = ["ImageBrowser", "ImageInfluence", "Ladder", "Rungs", "three_methods"]
