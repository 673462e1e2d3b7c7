# SPDX-License-Identifier: Apache-2.0
"""Shape of the answer tree."""

import pytest

from nvila_ros.models.trie import TokenTrie


def test_only_what_must_be_read_is_in_the_tree():
    trie = TokenTrie([(1, 2, 5, 9), (1, 2, 6), (1, 3, 9, 9)])
    assert trie.tokens == [1, 2]  # 3 has one continuation, so its state is not needed
    assert trie.parents == [-1, 0]
    assert [(branch.node, branch.tokens) for branch in trie.branches] == [(0, (2, 3)), (1, (5, 6))]
    assert trie.depths == (0, 1)


def test_the_common_prefix_is_split_off():
    trie = TokenTrie([(1, 2, 5), (1, 2, 6), (1, 2, 7, 8)])
    assert trie.prefix == (1, 2)
    assert trie.tail.sequences == ((5,), (6,), (7, 8))
    assert trie.tail.tokens == []


def test_a_row_sees_its_own_path_only():
    trie = TokenTrie([(1, 3, 5), (1, 3, 6), (2, 4, 5), (2, 4, 6)])
    assert trie.tokens == [1, 3, 2, 4]
    assert trie.visibility.int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("sequences", [[], [(), (1,)], [(1, 2), (1,)], [(1, 2), (1, 2)]])
def test_ambiguous_answers_are_refused(sequences):
    with pytest.raises(ValueError):
        TokenTrie(sequences)
