"""English text without a download: `pydoc_data.topics` of Python's standard library.

A network predicts each character from the ones before it. An example is a window of `LENGTH`
characters; its labels are the same characters shifted by one.
"""

import pydoc_data.topics

import numpy as np

LENGTH = 64  # characters per window; windows do not overlap
TEST_FRACTION = 0.1
COMMON = 20  # a character that occurs less often is replaced by RARE
RARE = "\N{REPLACEMENT CHARACTER}"


def text() -> str:
    """Returns the text: all topics in alphabetical order, each paragraph only where it is first.

    Many paragraphs occur in several topics, and would otherwise be in the training and in the test
    set. The text depends on the version of Python.
    """
    topics = pydoc_data.topics.topics
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    stripped = (paragraph.strip("\n") for paragraph in paragraphs)
    return "\n\n".join(dict.fromkeys(paragraph for paragraph in stripped if paragraph))


def read() -> dict[str, np.ndarray]:
    """Returns the arrays `x_train`, `y_train`, `x_test` and `y_test`.

    All are int32 of shape (windows, LENGTH). The test set is the end of the text.
    """
    characters = np.array(list(text()))
    names, counts = np.unique(characters, return_counts=True)
    rare = np.isin(characters, names[counts < COMMON])
    _, tokens = np.unique(np.where(rare, RARE, characters), return_inverse=True)
    windows = (len(tokens) - 1) // LENGTH
    x = tokens[: windows * LENGTH].astype(np.int32).reshape(windows, LENGTH)
    y = tokens[1 : windows * LENGTH + 1].astype(np.int32).reshape(windows, LENGTH)
    kept = windows - round(TEST_FRACTION * windows)
    return {"x_train": x[:kept], "y_train": y[:kept], "x_test": x[kept:], "y_test": y[kept:]}
