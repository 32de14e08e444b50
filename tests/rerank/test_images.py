"""Features by row: stores one after another give what arrays give."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.rerank.images import ArrayImages, StoredImages, check_local
from revisitop.evaluation import check_made_alike


@pytest.fixture
def tables(make_local):
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((30, 4)).astype(np.float32)
    descriptors[[3, 20]] = np.nan
    local = [make_local(rng, 0 if np.isnan(row).any() else int(rng.integers(0, 9))) for row in descriptors]
    return descriptors, local


def test_stores_give_what_arrays_give(tables, write_store):
    descriptors, local = tables
    stores = [write_store("a", descriptors[:11], local[:11]), write_store("empty", descriptors[:0], local),
              write_store("b", descriptors[11:], local[11:])]
    stored, arrays = StoredImages(stores), ArrayImages(descriptors, local)
    assert (len(stored), stored.dim, stored.local_dim) == (30, 4, 8) == (
        len(arrays), arrays.dim, arrays.local_dim)
    for rows in ([], [29, 0, 11, 10, 20, 11], range(30)):
        rows = np.array(rows, np.int64)
        np.testing.assert_array_equal(stored.descriptors(rows), descriptors[rows])
        np.testing.assert_array_equal(arrays.descriptors(rows), descriptors[rows])
    for row in range(30):
        for images in (stored, arrays):
            found = images.local(row)
            assert len(found.descriptors) == len(local[row].descriptors)
            np.testing.assert_allclose(found.descriptors, local[row].descriptors, atol=1e-3)    # float16
            np.testing.assert_array_equal(found.xy, local[row].xy)
            np.testing.assert_array_equal(found.scores, local[row].scores)


def test_only_the_chunks_asked_for_are_read(tables, write_store):
    descriptors, local = tables
    store = write_store("a", descriptors, local, chunk_size=5)
    images = StoredImages([store])
    (store.path / "chunk-000002.safetensors").write_bytes(b"damaged")
    assert len(images.local(4).offsets) == 2 and len(images.local(29).offsets) == 2


def test_stores_of_different_kinds_are_refused(tables, write_store):
    descriptors, local = tables
    with pytest.raises(UserError, match="b has local features of 0 dimensions, .*a of 8"):
        StoredImages([write_store("a", descriptors, local), write_store("b", descriptors)])


def test_local_features_of_other_settings_are_refused(tables, write_store):
    """Which decide nothing where descriptors alone are compared."""
    descriptors, local = tables
    first = write_store("a", descriptors, local, local_whitening="x")
    second = write_store("b", descriptors, local)
    query, database = StoredImages([first]), StoredImages([second])
    with pytest.raises(UserError, match="a and .*b were made with different local_whitening: x and none .*--across"):
        check_local(query, database, "spatial")
    check_made_alike([first, second])
    check_local(StoredImages([FeatureStore(first.path, across=True)]), database, "spatial")
    check_local(ArrayImages(descriptors, local), ArrayImages(descriptors, local), "spatial")


def test_arrays_that_do_not_fit_are_refused(tables):
    descriptors, local = tables
    with pytest.raises(UserError, match="shape .4,."):
        ArrayImages(descriptors[0])
    with pytest.raises(UserError, match="local features of 29 images, and descriptors of 30"):
        ArrayImages(descriptors, local[1:])


def test_methods_that_need_local_features_say_so(tables, make_local):
    descriptors, local = tables
    whole, bare = ArrayImages(descriptors, local), ArrayImages(descriptors)
    other = ArrayImages(descriptors[:1], [make_local(np.random.default_rng(1), 3, 6)])
    check_local(whole, whole, "spatial")
    with pytest.raises(UserError, match="METHOD rrt needs local features, and the queries have none"):
        check_local(bare, whole, "rrt")
    with pytest.raises(UserError, match="the database images have none"):
        check_local(whole, bare, "rrt")
    with pytest.raises(UserError, match="have 6 dimensions, of the database 8"):
        check_local(other, whole, "rrt")
