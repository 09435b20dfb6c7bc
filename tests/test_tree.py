"""Trees: nodes and leaves, the walks, and the immutable `Tree`."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

from culux import Tree, tree
from culux.errors import EntryError, LayerError, ShapeError

Point = namedtuple("Point", "x y")


class Pair:
    """A registered node."""

    def __init__(self, first, second, name):
        self.first, self.second, self.name = first, second, name

    def __tree_flatten__(self):
        return {"first": self.first, "second": self.second}, self.name

    @classmethod
    def __tree_unflatten__(cls, static, children):
        return cls(children["first"], children["second"], static)

    def __eq__(self, other):
        return (self.first, self.second, self.name) == (other.first, other.second, other.name)

    __hash__ = None


NESTED = {"b": [1, (2, None)], "a": Tree(w=3, deep=Tree(v=4)), "p": Point(5, {"k": 6}), "n": Pair(7, [8], "pair")}


# The walks.


def test_leaves_are_in_the_order_of_the_entries():
    assert tree.leaves(NESTED) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tree.leaves(Tree(b=1, a=2)) == [1, 2]


def test_paths_are_names_joined_by_dots():
    paths = ["b.0", "b.1.0", "a.w", "a.deep.v", "p.x", "p.y.k", "n.first", "n.second.0"]
    assert [path for path, _ in tree.leaves_with_path(NESTED)] == paths
    assert tree.leaves_with_path(3) == [("", 3)]


def test_map_keeps_the_structure():
    doubled = tree.map(lambda x: 2 * x, NESTED)
    assert tree.leaves(doubled) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert tree.structure(doubled) == tree.structure(NESTED)
    assert type(doubled["a"]) is Tree
    assert type(doubled["p"]) is Point
    assert doubled["n"] == Pair(14, [16], "pair")
    assert doubled["b"][1][1] is None


def test_map_of_several_trees():
    assert tree.map(lambda x, y: x + y, NESTED, NESTED) == tree.map(lambda x: 2 * x, NESTED)
    assert tree.map(lambda x, y: (x, y), Tree(a=1), {"a": [2, 3]}) == {"a": (1, [2, 3])}
    assert tree.map(lambda x, y: x - y, {"a": 5, "b": 7}, {"b": 1, "a": 2}) == {"a": 3, "b": 6}


def test_map_with_path():
    assert tree.map_with_path(lambda path, x: f"{path}={x}", {"a": [1, 2]}) == {"a": ["a.0=1", "a.1=2"]}


def test_flatten_and_unflatten_are_inverse():
    leaves, structure = tree.flatten(NESTED)
    assert tree.unflatten(structure, leaves) == NESTED
    assert structure.num_leaves == 8
    assert tree.unflatten(structure, iter(range(8)))["p"] == Point(4, {"k": 5})
    with pytest.raises(ShapeError, match="expected 8 leaves for this structure, got 2"):
        tree.unflatten(structure, [1, 2])


def test_none_is_a_node_without_leaves():
    assert tree.leaves(None) == []
    assert tree.map(lambda x: 1 / 0, None) is None
    assert tree.leaves({"a": None}, is_leaf=lambda x: x is None) == [None]


def test_is_leaf_stops_the_walk():
    assert tree.leaves({"a": (1, 2), "b": [3]}, is_leaf=lambda x: isinstance(x, tuple)) == [(1, 2), 3]
    assert tree.map(sum, {"a": (1, 2)}, is_leaf=lambda x: isinstance(x, tuple)) == {"a": 3}


def test_reduce():
    assert tree.reduce(lambda a, b: a + b, NESTED) == 36
    assert tree.reduce(lambda a, b: [*a, b], (1, (2,)), []) == [1, 2]
    with pytest.raises(TypeError, match="empty"):
        tree.reduce(lambda a, b: a + b, {})


def test_structures_compare_and_hash():
    one, other = tree.structure({"a": 1, "b": (2,)}), tree.structure({"a": 9, "b": (8,)})
    assert one == other
    assert hash(one) == hash(other)
    assert one != tree.structure({"b": 1, "a": (2,)})
    assert one != tree.structure({"a": 1, "b": [2]})
    assert tree.structure(Pair(1, 2, "a")) != tree.structure(Pair(1, 2, "b"))
    assert tree.structure(Tree(a=1)) != tree.structure({"a": 1})


def test_arrays_strings_and_other_objects_are_leaves():
    array = np.zeros((2, 3))
    assert tree.leaves({"a": array, "b": "text", "c": {1, 2}, "d": range(3)})[0] is array
    assert len(tree.leaves(["text", range(3), frozenset()])) == 3


def test_dict_subclasses_keep_their_kind():
    assert type(tree.map(str, OrderedDict(b=1, a=2))) is OrderedDict


MISFITS = [
    (Tree(a=1), {"b": 1}, "at the top: the trees have different entries; missing: a; not expected: b"),
    (Tree(a=Tree(w=1)), Tree(a=Tree(w=1, v=2)), "at a: the trees have different entries; not expected: v"),
    (Tree(a=Tree(w=1)), Tree(a=3), r"at a: expected a Tree with the entries w, got int 3"),
    ([1, 2], [1], "at the top: the trees have different entries; missing: 1"),
    ({"a": None}, {"a": 1}, "at a: expected None, got int 1"),
    ({"a": [1]}, {"a": {"0": 1}}, "at a: expected a list with the entries 0, got dict"),
]


@pytest.mark.parametrize(("one", "other", "message"), MISFITS)
def test_trees_of_other_structures_are_refused_with_the_path(one, other, message):
    with pytest.raises(ShapeError, match=message):
        tree.map(lambda a, b: a, one, other)


# Tree.


def test_nested_mappings_become_trees():
    made = Tree({"a": {"b": {"c": 1}}, "l": [{"d": 2}], "t": ({"e": 3},)})
    assert type(made.a) is Tree
    assert type(made.a.b) is Tree
    assert type(made.l[0]) is Tree
    assert made.t[0].e == 3
    assert made["a"]["b"]["c"] == made.a.b.c == 1
    assert made == {"a": {"b": {"c": 1}}, "l": [{"d": 2}], "t": ({"e": 3},)}


def test_mapping_gives_trees_for_dicts_made_by_the_function():
    assert type(tree.map(lambda x: {"v": x}, Tree(a=1)).a) is Tree


MUTATIONS = {
    "tree['a'] = 2": lambda t: t.__setitem__("a", 2),
    "tree.a = 2": lambda t: setattr(t, "a", 2),
    "tree.new = 2": lambda t: setattr(t, "new", 2),
    "del tree['a']": lambda t: t.__delitem__("a"),
    "del tree.a": lambda t: delattr(t, "a"),
    "clear": lambda t: t.clear(),
    "pop": lambda t: t.pop("a"),
    "pop with a default": lambda t: t.pop("no", 1),
    "popitem": lambda t: t.popitem(),
    "setdefault": lambda t: t.setdefault("a", 1),
    "update": lambda t: t.update(a=2),
    "|=": lambda t: t.__ior__({"a": 2}),
}


@pytest.mark.parametrize("change", MUTATIONS)
def test_a_tree_cannot_change(change):
    made = Tree(a=1, b=Tree(c=2))
    with pytest.raises(TypeError, match=r"a Tree cannot change; make another with tree.replace\(name=value\)"):
        MUTATIONS[change](made)
    assert made == {"a": 1, "b": {"c": 2}}


def test_every_mutating_method_of_dict_is_covered():
    readers = {"copy", "fromkeys", "get", "items", "keys", "values"}
    methods = {name for name in vars(dict) if not name.startswith("__")}
    assert methods - readers == {"clear", "pop", "popitem", "setdefault", "update"}


def test_augmented_or_rebinds_nothing():
    made = other = Tree(a=1)
    with pytest.raises(TypeError, match="cannot change"):
        made |= {"a": 2}
    assert other.a == 1


def test_or_gives_a_tree():
    for joined in (Tree(a=1, b=2) | {"b": 3, "c": {"d": 4}}, {"a": 1, "b": 2} | Tree(b=3, c={"d": 4})):
        assert type(joined) is Tree
        assert joined == {"a": 1, "b": 3, "c": {"d": 4}}
        assert type(joined.c) is Tree


def test_the_original_dict_stays_apart():
    source = {"a": {"b": 1}}
    made = Tree(source)
    source["a"]["b"] = 2
    assert made.a.b == 1


def test_replace():
    made = Tree(layer_1=Tree(weight=1, bias=2), layer_2=Tree(weight=3))
    assert made.replace({"layer_1.weight": 9}) == {"layer_1": {"weight": 9, "bias": 2}, "layer_2": {"weight": 3}}
    assert made.replace(layer_2={"weight": {"x": 4}}).layer_2.weight.x == 4
    assert made.replace({"layer_1.weight": 8}, layer_2=0) == {"layer_1": {"weight": 8, "bias": 2}, "layer_2": 0}
    assert made.replace() == made
    assert made.layer_1.weight == 1
    assert list(made.replace({"layer_1.weight": 9})) == ["layer_1", "layer_2"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layer_3", r"expected an entry 'layer_3' \(did you mean 'layer_1'\?\), the entries are: layer_1"),
        ("layer_1.wieght", r"expected an entry 'wieght' \(did you mean 'weight'\?\), the entries are: weight, bias"),
        ("layer_1.weight.x", "'weight' is a leaf, 'weight.x' leads into it"),
    ],
)
def test_replace_of_an_unknown_entry(path, message):
    with pytest.raises(KeyError, match=message):
        Tree(layer_1=Tree(weight=1, bias=2)).replace({path: 0})


def test_unknown_entries_name_the_nearest():
    made = Tree(weight=1, bias=2)
    for read in (lambda: made.wieght, lambda: made["wieght"]):
        with pytest.raises(
            EntryError, match=r"expected an entry 'wieght' \(did you mean 'weight'\?\).*weight, bias"
        ) as error:
            read()
        assert isinstance(error.value, KeyError)
        assert isinstance(error.value, AttributeError)
    assert not hasattr(made, "no")
    assert getattr(made, "no", 3) == 3
    assert made.get("no") is None
    with pytest.raises(EntryError, match="the entries are: none"):
        Tree()["x"]


@pytest.mark.parametrize("name", ["keys", "values", "items", "update", "copy", "get", "pop", "replace", "clear"])
def test_names_of_methods_are_refused(name):
    with pytest.raises(LayerError, match=f"'{name}' is a method of dict and cannot name an entry"):
        Tree({name: 1})


@pytest.mark.parametrize(
    ("name", "message"), [("a.b", "have no dots"), ("", "are not empty"), (1, "strings, got int 1")]
)
def test_other_names_are_refused(name, message):
    with pytest.raises(LayerError, match=message):
        Tree({"outer": {name: 1}})


def test_copies_and_pickles():
    made = Tree(a=np.arange(3), b=Tree(c=[1, 2]))
    assert made.copy() is made
    deep = copy.deepcopy(made)
    assert type(deep) is Tree
    assert type(deep.b) is Tree
    assert deep.a is not made.a
    np.testing.assert_array_equal(deep.a, made.a)
    loaded = pickle.loads(pickle.dumps(made))
    assert type(loaded) is type(loaded.b) is Tree
    np.testing.assert_array_equal(loaded.a, made.a)
    assert list(loaded) == ["a", "b"]


def test_equal_trees_hash_alike():
    assert hash(Tree(a=1, b=Tree(c=2))) == hash(Tree(b=Tree(c=2), a=1))
    assert {Tree(a=1): "found"}[Tree(a=1)] == "found"


def test_repr_shows_shapes():
    assert repr(Tree(w=np.zeros((2, 3), np.float32), n=3)) == "Tree(w=float32[2, 3], n=3)"


def test_dir_lists_the_entries():
    assert {"weight", "replace"} <= set(dir(Tree(weight=1)))


# Selection.

PS = Tree(layer_1=Tree(weight=1, bias=2), layer_10=Tree(weight=3), head=Tree(layer_1=Tree(bias=4)), bias=5)


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.bias", ["layer_1.bias", "head.layer_1.bias", "bias"]),
        ("layer_1.*", ["layer_1.weight", "layer_1.bias"]),
        ("layer_1", ["layer_1.weight", "layer_1.bias"]),
        ("*.layer_1.*", ["layer_1.weight", "layer_1.bias", "head.layer_1.bias"]),
        ("layer_1.weight", ["layer_1.weight"]),
        ("layer_?.weight", ["layer_1.weight"]),
        ("layer_*.weight", ["layer_1.weight", "layer_10.weight"]),
        ("*", ["layer_1.weight", "layer_1.bias", "layer_10.weight", "head.layer_1.bias", "bias"]),
    ],
)
def test_select(pattern, paths):
    found = tree.select(PS, pattern)
    assert type(found) is Tree
    assert [path for path, _ in tree.leaves_with_path(found)] == paths
    assert dict(tree.leaves_with_path(found)).items() <= dict(tree.leaves_with_path(PS)).items()


def test_select_without_a_match_lists_the_paths():
    with pytest.raises(EntryError, match=r"no path fits 'layer_2.\*' .*the paths are: layer_1.weight, layer_1.bias"):
        tree.select(PS, "layer_2.*")


def test_select_takes_dicts_and_keeps_whole_lists():
    assert tree.select({"a": {"w": 1}, "b": 2}, "a.w") == {"a": {"w": 1}}
    assert tree.select(Tree(a=[1, 2], b=3), "a") == {"a": [1, 2]}
