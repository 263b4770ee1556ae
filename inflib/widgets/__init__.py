"""What the notebooks show: widgets and plots. The core of inflib never imports this package.

keyboard           what controls lack for somebody without a mouse, or without sight
live               the live panel over its still, as long as its kernel runs
base               what every widget shares: error area, busy state, still
strip              a row of pictures to click on
ranking            two lists out of many scores: what every browser shows
engine             an index, curvatures to choose from, one damping: what answers every browser
asking             the controls that say how to score: what every browser has above its lists
answer             what the image browser shows, as plain values, text, HTML and CSV
image_influence    questions about images, answered from a TrainIndex
image_lists        the two lists of an answer as strips of pictures
browser            the image browser
sketch             a sheet to draw on
draw               draw a digit, and see which training digits made the model say what it says
heat               text with the influence of each token, in steps that can be told apart without colour
text_answer        what the text browser shows, as plain values, text, HTML and CSV
text_influence     questions about text, answered from a TrainIndex of sequences
texts              anybody's documents and their tokenizer, as a corpus to browse
text_words         what may be asked: words completed, capitals put right
text_view          how the text browser draws an answer
chips              a row of words to choose from
passages           texts with a heatmap over their tokens
layer_bars         bars by layer to click on
text_browser       the text browser
rungs              the ladder of curvatures as numbers: how far each rung is from exact
ladder_view        how the ladder is drawn
ladder             the ladder of curvatures
board              named methods against ground truths, as a figure
believe            the same as a widget, with one query's predictions beside what retraining showed
review_decisions   kept, relabelled, removed: undone, and as CSV and back
review_file        the file that decisions are kept in
review_examples    labelled pictures or texts of anybody's
review_signals     which labels look wrong: orders to review in
review_effects     what decisions do: predicted, and measured by training again
review_desk        one example and three buttons, by keyboard too
review_case        one example under review as plain values
review_view        how a review is drawn
review             review suspicious labels, and see what repairing them does
boxes              boxes that give scores, checks to run on them, and what is left to explain them
plots              figures in one style
"""

from ..extras import require

require("inflib.widgets", "IPython", "PIL", "anywidget", "ipywidgets", "matplotlib", "safetensors")

from .believe import BelieveBoard, Dials
from .board import board_figure
from .boxes import Boxes
from .browser import ImageBrowser
from .draw import DrawDigit
from .engine import three_methods
from .image_influence import ImageInfluence
from .ladder import Ladder
from .review import Review
from .review_effects import retraining
from .review_examples import Examples
from .review_signals import suspicion
from .rungs import Rungs
from .text_browser import TextBrowser
from .text_influence import TextInfluence, index_size
from .texts import Texts

__all__ = [
    "BelieveBoard",
    "Boxes",
    "Dials",
    "DrawDigit",
    "Examples",
    "ImageBrowser",
    "ImageInfluence",
    "Ladder",
    "Review",
    "Rungs",
    "TextBrowser",
    "TextInfluence",
    "Texts",
    "board_figure",
    "index_size",
    "retraining",
    "suspicion",
    "three_methods",
]
