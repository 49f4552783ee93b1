"""The memory that encrypted downloads share."""

import pytest

from regmirror.upstream.receive_buffers import BUFFERS, LARGEST, LIMIT, SMALLEST, Pool

MIB = 1024 * 1024


def test_a_body_that_is_alone_gets_the_largest_buffers() -> None:
    """B12: they are the quickest."""
    pool = Pool()
    buffers = pool.borrow()
    views = list(buffers.take())
    assert [len(view) for view in views] == [LARGEST] * BUFFERS
    views[0][:3] = b"abc"
    assert bytes(views[0][:4]) == b"abc\0"


@pytest.mark.parametrize("count", [20, 56])
def test_many_bodies_share_the_memory_of_the_worker(count: int) -> None:
    """B18: 20 downloads have less than 64 MiB with all else that they need."""
    pool = Pool()
    sizes = [pool.borrow().size for _ in range(count)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == SMALLEST
    assert sum(sizes) * BUFFERS == pool.borrowed <= LIMIT + count * BUFFERS * SMALLEST


def test_what_is_given_back_is_lent_again() -> None:
    """B18, B100: once, however often it is given back."""
    pool = Pool()
    lent = [pool.borrow() for _ in range(100)]
    for buffers in lent * 2:
        pool.give_back(buffers)
    assert pool.borrowed == 0
    assert pool.borrow().size == LARGEST
