"""An example of a model of one's own: tells circles, squares and triangles apart."""

LABELS = ("circle", "square", "triangle")
#: Height and width of the pictures that the network sees.
SIZE = 32
