"""The figures of the benchmarks."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.common.plotting import new_figure, save


def test_a_saved_figure_has_256_colors_that_are_close_to_its_own(tmp_path):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    for i in range(9):
        axes.plot([0, 1], [0, i], color=f"C{i}")
    files = tmp_path / "full.png", tmp_path / "small.png"
    figure.savefig(files[0])
    save(figure, files[1])
    assert files[1].stat().st_size < files[0].stat().st_size / 2
    full, small = (np.asarray(Image.open(file).convert("RGB"), int) for file in files)
    distances = np.abs(full - small).max(axis=-1)
    assert np.quantile(distances, 0.99) < 20
    assert distances.mean() < 1
