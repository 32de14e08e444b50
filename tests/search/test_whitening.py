"""Whitening: against its definition, and what it is for."""
import numpy as np
import pytest
import torch

from dolg.errors import UserError
from dolg.search.whitening import Whitening, class_pairs, learned_whitening, pca_whitening


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def _slow_pca(table, dim, power):
    """By singular values of the centred table."""
    centred = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ axes.T / (values ** 2 / len(table)) ** power
    projected = projected[:, :dim]
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


@pytest.mark.parametrize("dim, power", [(12, 0.5), (5, 0.5), (5, 0.0), (12, 0.0)])
def test_pca_against_singular_values(table, dim, power):
    chunks = [table[:100], np.full((3, 12), np.nan, np.float32), table[100:101], table[101:]]
    whitening = pca_whitening(chunks, dim, power)
    mine = whitening(torch.from_numpy(table)).numpy()
    slow = _slow_pca(table, dim, power)
    # Which way an axis points is anybody's choice, and no matter to inner products
    np.testing.assert_allclose(mine @ mine.T, slow @ slow.T, atol=2e-5)
    assert mine.shape == (500, dim) and whitening.dim == dim


def test_whitened_components_have_equal_variance(table):
    whitening = pca_whitening([table])
    raw = (table - whitening.mean.numpy()) @ whitening.projection.numpy()
    np.testing.assert_allclose(np.cov(raw.T, bias=True), np.eye(12), atol=1e-3)


def test_learned_whitening_against_its_definition(table):
    """Radenovic's three lines (cirtorch, whitenlearn), in columns."""
    rng = np.random.default_rng(1)
    first, second = table[:200], table[:200] + 0.05 * rng.normal(size=(200, 12)).astype(np.float32)
    mine = learned_whitening(first, second, 6)
    x, y = first.T.astype(np.float64), second.T.astype(np.float64)
    mean = x.mean(axis=1, keepdims=True)
    inner = np.linalg.inv(np.linalg.cholesky((x - y) @ (x - y).T / 200))
    spread = inner @ (x - mean)
    values, vectors = np.linalg.eig(spread @ spread.T)
    outer = (vectors[:, np.argsort(-values.real)].real.T @ inner)[:6]
    expected = outer @ (table.T - mean)
    expected /= np.linalg.norm(expected, axis=0)
    found = mine(torch.from_numpy(table)).numpy()
    np.testing.assert_allclose(found @ found.T, expected.T @ expected, atol=1e-4)


def test_learned_whitening_undoes_a_nuisance():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(40), 5)
    centres = rng.normal(size=(40, 16))
    noise = rng.normal(size=(200, 16))
    noise[:, :8] *= 8           # what tells nothing of the class
    table = (centres[labels] + noise * 0.3).astype(np.float32)
    pairs = class_pairs(labels, np.ones(200, bool))
    whitened = learned_whitening(table[pairs[:, 0]], table[pairs[:, 1]])(torch.from_numpy(table))

    def right(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        scores = x @ x.T - 2 * np.eye(200)
        return (labels[scores.argmax(axis=1)] == labels).mean()

    assert right(whitened.numpy()) > 0.9 > 0.6 > right(table)


def test_pairs_are_of_one_class_and_of_images_that_are_there():
    labels, usable = np.array([0, 0, 1, 2, 2, 2, 1, 3]), np.ones(8, bool)
    usable[6] = False
    pairs = class_pairs(labels, usable)
    assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all() and usable[pairs].all()
    assert sorted(map(tuple, np.sort(pairs, axis=1))) == [(0, 1), (3, 4), (3, 5), (4, 5)]
    with pytest.raises(UserError, match="no class has two"):
        class_pairs(np.arange(3), np.ones(3, bool))


def test_mistakes_and_files(table, tmp_path):
    with pytest.raises(UserError, match="13 components were asked for, of descriptors of 12"):
        pca_whitening([table], 13)
    with pytest.raises(UserError, match="vary in 4 directions alone"):
        pca_whitening([table[:5]])
    with pytest.raises(UserError, match="1 descriptors are too few"):
        pca_whitening([table[:1]])
    with pytest.raises(UserError, match="3 pairs do not differ in all 12"):
        learned_whitening(table[:3], table[3:6])
    whitening = pca_whitening([table], 5)
    whitening.save(tmp_path / "w.safetensors")
    again = Whitening.load(tmp_path / "w.safetensors", 12)
    assert torch.equal(again.mean, whitening.mean)
    assert torch.equal(again.projection, whitening.projection)
    with pytest.raises(UserError, match="for descriptors of 12 dimensions, these have 9"):
        Whitening.load(tmp_path / "w.safetensors", 9)
    (tmp_path / "no").write_text("no")
    with pytest.raises(UserError, match="is no whitening"):
        Whitening.load(tmp_path / "no", 9)


def test_what_was_learned_from_other_descriptors_is_refused(run_tool, make_store, table, tmp_path):
    for name, scales in (("learned", [1.0]), ("alike", [1.0]), ("other", [0.5])):
        make_store(name, table, 100, provenance={"scales": scales})
    file = tmp_path / "w.safetensors"
    assert run_tool("tools/whiten.py", tmp_path / "learned", file).returncode == 0
    done = run_tool("tools/whiten.py", tmp_path / "other", tmp_path / "new", "--apply", file)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not (tmp_path / "new").exists()
    assert f"{file} was learned from descriptors that were made with different scales: [1.0] and [0.5]" in done.stderr
    for name, more in (("alike", ()), ("other", ("--across",))):
        done = run_tool("tools/whiten.py", tmp_path / name, tmp_path / f"{name} white", "--apply", file, *more)
        assert done.returncode == 0, done.stderr
    pca_whitening([table]).save(file)       # as it was written before: nothing is known
    assert run_tool("tools/whiten.py", tmp_path / "other", tmp_path / "old", "--apply", file).returncode == 0
