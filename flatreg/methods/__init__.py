"""One paper, one file: each method reads like its paper's formula."""
