"""Rows of an adversarial set that is too large to be read whole."""

from __future__ import annotations

import numpy as np
import pytest
from report.synthetic import synthetic_run

from simhpc.errors import BadFileError
from simhpc.store import adversarial


def test_some_rows_are_those_of_all(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=3, n_attacked=1)
    path = run.dir.adversarial(run.study.models[0].key)
    whole = adversarial.load(path)
    for rows in ([], [0], [4, 2]):
        images, answers = adversarial.load_some(path, rows)
        np.testing.assert_array_equal(images, whole.images[rows])
        np.testing.assert_array_equal(answers, whole.adv_pred[rows])
    with pytest.raises(BadFileError, match="'images' has 10 rows"):
        adversarial.load_some(path, [10])
