"""EDM2's pickles give the networks in them; pickles that do anything else are refused, with nothing run."""

import collections
import contextlib
import copyreg
import dataclasses
import io
import json
import os
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from harness import edm2_pickle
from harness.diffusion.edm2_network import EDM2Config, EDM2Network
from harness.errors import HarnessError
from tests import edm2_pickles
from tests.edm2_pickles import NETWORKS, EasyDict, Persistent, content, dumps
from tests.vectors.edm2_pickle.make import HERE, inputs, sha256

VECTORS = json.loads((HERE / "outputs.json").read_text())
RAN: list[str] = []
SMALL = NETWORKS["no-labels"]


def opened(folder: Path) -> EDM2Network:
    """The network of a converted folder, float32."""
    told = json.loads((folder / "config.json").read_text())
    names = {field.name for field in dataclasses.fields(EDM2Config)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items() if key in names}
    network = EDM2Network(EDM2Config(**values))
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_our_writers_file_gives_what_the_official_one_gave(tmp_path: Path, name: str) -> None:
    """The official code's network of the same weights: the same tensors to the bit, and its outputs to 1e-5 (float32
    sums in another order)."""
    path = edm2_pickles.write(tmp_path / f"{name}.pkl", name)
    found, expected = edm2_pickle.read(path), VECTORS[name]
    assert sha256(found.tensors) == expected["state_sha256"]
    assert json.loads(json.dumps(found.config)) == expected["config"]
    edm2_pickle.convert(path, tmp_path / "made")
    told = json.loads((tmp_path / "made" / "config.json").read_text())
    assert told.pop("source")["file"] == f"{name}.pkl"
    assert told == expected["config"]
    x, sigma, labels = inputs(NETWORKS[name]["img_channels"], NETWORKS[name]["label_dim"])
    with torch.no_grad():
        ours = opened(tmp_path / "made")(x, sigma, labels)
    official = load_file(HERE / "outputs.safetensors")[name].numpy()
    np.testing.assert_allclose(ours.numpy(), official, rtol=1e-5, atol=1e-5 * np.abs(official).max())


def test_the_layout_is_that_of_the_official_code() -> None:
    """The same names are asked for, as the official pickles asked for."""
    import pickletools

    found, texts = set(), []
    for operation, argument, _ in pickletools.genops(dumps(content(NETWORKS["labels"]))):
        if isinstance(argument, str):
            texts.append(argument)
        if operation.name == "STACK_GLOBAL":
            found.add(texts[-1])
    assert sorted(found) == VECTORS["labels"]["names"]


@pytest.mark.parametrize(("protocol", "old"), [(4, True), (5, False), (5, True)])
def test_other_versions_of_python_and_torch_wrote_the_same(tmp_path: Path, protocol: int, old: bool) -> None:
    path = edm2_pickles.write(tmp_path / "n.pkl", protocol=protocol, old=old)
    assert sha256(edm2_pickle.read(path).tensors) == VECTORS["labels"]["state_sha256"]


def test_a_conversion_is_the_same_each_time_and_for_all_users(tmp_path: Path) -> None:
    path = edm2_pickles.write(tmp_path / "n.pkl", "no-labels")
    edm2_pickle.convert(path, tmp_path / "a")
    edm2_pickle.convert(path, tmp_path / "b")
    for name in ("config.json", edm2_pickle.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", edm2_pickle.WEIGHTS]
    modes = {(tmp_path / "a" / name).stat().st_mode for name in ("config.json", edm2_pickle.WEIGHTS)}
    assert modes == {path.stat().st_mode}


def test_a_tensor_in_another_order_of_its_memory_keeps_its_values(tmp_path: Path) -> None:
    weights = edm2_pickles.tensors(SMALL)
    turned = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in weights.items()}
    made = content(SMALL)
    unet = made["ema"].meta["state"]["_modules"]["unet"]
    assert turned["emb_noise.weight"].stride() == (1, 16)
    unet.emb_noise.weight = nn.Parameter(turned["emb_noise.weight"], requires_grad=False)
    path = tmp_path / "n.pkl"
    path.write_bytes(dumps(made))
    edm2_pickle.convert(path, tmp_path / "made")
    assert torch.equal(load_file(tmp_path / "made" / edm2_pickle.WEIGHTS)["emb_noise.weight"],
                       weights["emb_noise.weight"])


# ---- what is no pickle of a network, or does more than hold one


def ran(*what: object) -> None:
    """What a malicious pickle would call."""
    RAN.append(str(what))


class Calls:
    """Pickled as the call of `function`, with a state where it is given one."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


def named(module: str, name: str) -> Any:
    """A function that is pickled under this name."""

    def function(*_: Any) -> None:
        raise AssertionError("called")

    function.__module__, function.__qualname__ = module, name
    return function


tensor = named("torch._utils", "_rebuild_tensor_v2")
parameter = named("torch._utils", "_rebuild_parameter")
storage = named("torch.storage", "_load_from_bytes")
module_dict = named("torch.nn.modules.container", "ModuleDict")


def with_encoder(value: Any) -> bytes:
    """A whole network, and beside it something else."""
    return dumps(EasyDict(content(SMALL), encoder=value))


def payload(
    *, kind: str = "HalfStorage", count: int = 4, told: int | None = None, data: bytes = b"\0" * 8,
    fourth: bytes | None = None, magic: int = edm2_pickle.MAGIC[0], little: bool = True,
) -> bytes:
    """What torch's older format makes of a storage."""
    described = pickle.dumps(("storage", "KIND", "0", "cpu", count, None), 2)[:-1].replace(
        b"X\x04\x00\x00\x00KIND", f"ctorch\n{kind}\n".encode()
    ) + b"Q."
    parts = [magic, edm2_pickle.MAGIC[1], {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}]
    start = b"".join(pickle.dumps(part, 2) for part in parts) + (described if fourth is None else fourth)
    return start + pickle.dumps(["0"], 2) + struct.pack("<q", count if told is None else told) + data


def whole(size: Any = (4,), stride: Any = (1,), offset: Any = 0, **options: Any) -> Calls:
    return Calls(tensor, Calls(storage, payload(**options)), offset, size, stride, False, collections.OrderedDict())


def zipped() -> bytes:
    """torch's newer format, with a call inside."""
    file = io.BytesIO()
    torch.save(Calls(ran, 1), file)
    return file.getvalue()


def modules(depth: int, twice: bool) -> bytes:
    """Modules one in the other; `twice` doubles the ways to the innermost at each."""
    inner: Any = None
    for _ in range(depth):
        within = {"a": inner, "b": inner} if twice else {"a": inner}
        inner = Persistent("Precond", {"_parameters": {}, "_buffers": {}, "_modules": within, "_init_kwargs": {}})
        inner.meta["state"]["_modules"] = {key: value for key, value in within.items() if value is not None}
    inner.meta["state"]["_init_kwargs"] = SMALL
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return dumps(EasyDict(ema=inner))
    finally:
        sys.setrecursionlimit(old)


def called_from_text(module: str, name: str, *texts: str) -> bytes:
    """Protocol 0 by hand."""
    return f"c{module}\n{name}\n(".encode() + b"".join(f"V{text}\n".encode() for text in texts) + b"tR."


ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda f: with_encoder(Calls(os.system, f"touch {f}")),
    "os.system as all there is": lambda f: pickle.dumps(Calls(os.system, f"touch {f}")),
    "eval": lambda f: with_encoder(Calls(eval, f"open({str(f)!r}, 'w')")),
    "exec": lambda f: called_from_text("builtins", "exec", f"open({str(f)!r}, 'w')"),
    "getattr": lambda f: with_encoder(Calls(getattr, Calls(__import__, "os"), "system")),
    "own function": lambda f: with_encoder(Calls(ran, 1)),
    "inside a module's state": lambda f: dumps(EasyDict(ema=Persistent("Precond", {"_modules": Calls(ran, 1)}))),
    "inside the description of an object": lambda f: with_encoder(Persistent("Encoder", {}, Calls(ran, 1))),  # type: ignore[arg-type]
    "torch.load": lambda f: with_encoder(Calls(named("torch.serialization", "load"), str(f))),
    "torch's own unpickler": lambda f: with_encoder(Calls(named("torch._utils", "_import_dotted_name"), "os.system")),
    "another function of torch.storage": lambda f: with_encoder(Calls(named("torch.storage", "TypedStorage"), 1)),
    "torch.hub": lambda f: with_encoder(Calls(named("torch.hub", "load"), "a/b", "c")),
    "a call inside a storage": lambda f: with_encoder(
        Calls(storage, payload(fourth=pickle.dumps(Calls(os.system, f"touch {f}"), 2)))
    ),
    "a storage that is a pickle alone": lambda f: with_encoder(Calls(storage, pickle.dumps(Calls(ran, 1)))),
    "a storage in the newer format": lambda f: with_encoder(Calls(storage, zipped())),
    "a storage of another format": lambda f: with_encoder(Calls(storage, payload(magic=1))),
    "a storage of a machine of other byte order": lambda f: with_encoder(Calls(storage, payload(little=False))),
    "a storage of no known type": lambda f: with_encoder(Calls(storage, payload(kind="QUInt8Storage"))),
    "a module that a storage names": lambda f: with_encoder(Calls(storage, payload(kind="load"))),
    "EasyDict's names": lambda f: with_encoder(Calls(named("dnnlib.util", "call_func_by_name"), "os.system")),
    "persistence's names": lambda f: with_encoder(Calls(named("torch_utils.persistence", "_src_to_module"), "1")),
    "dotted name on what is allowed": lambda f: with_encoder(
        Calls(named("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__.get"), "os")
    ),
    "dotted name into another module": lambda f: with_encoder(
        Calls(named("collections", "_sys.modules.get"), "os")
    ),
    "dotted name of a class": lambda f: with_encoder(Calls(named("collections", "OrderedDict.fromkeys"), "ab")),
    "dotted name of a storage": lambda f: with_encoder(Calls(named("torch.storage", "_load_from_bytes.__call__"), b"")),
    "state of a function": lambda f: with_encoder(Calls(named("x", "y"), state={"__globals__": 1})),
    "state of an allowed name": lambda f: (
        b"\x80\x02ctorch.nn.modules.container\nModuleDict\nN}X\x0c\x00\x00\x00__setstate__cdnnlib.util\nEasyDict\ns\x86b."
    ),
    "state of an instance, then another": lambda f: (
        b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb(Vtouch\nb."
    ),
    "state of a dict": lambda f: with_encoder(Calls(collections.OrderedDict, state={"keys": 1})),
    "arguments of a dict": lambda f: with_encoder(Calls(collections.OrderedDict, [[((),), 1]])),
    "state of a tensor": lambda f: with_encoder(
        Calls(tensor, Calls(storage, payload()), 0, (4,), (1,), state=(1, (4,), np.dtype("f4"), False, b"\0" * 16))
    ),
    "another version of the layout": lambda f: with_encoder(
        Calls(edm2_pickles.reconstruct, {"type": "class", "version": 7, "module_src": "", "state": {}})
    ),
    "a persistent function": lambda f: with_encoder(
        Calls(edm2_pickles.reconstruct, {"type": "function", "version": 6})
    ),
    "a storage that is an array": lambda f: with_encoder(
        Calls(tensor, np.zeros(4, np.float16), 0, (4,), (1,), False, collections.OrderedDict())
    ),
    "a parameter of a function": lambda f: with_encoder(Calls(parameter, named("collections", "OrderedDict"), 1, 2)),
    "a storage longer than its bytes": lambda f: with_encoder(Calls(storage, payload(count=2**40))),
    "a storage of 2**62 numbers": lambda f: with_encoder(Calls(storage, payload(count=2**62))),
    "a storage of fewer numbers than told": lambda f: with_encoder(Calls(storage, payload(told=5))),
    "a storage of a negative length": lambda f: with_encoder(Calls(storage, payload(count=-1))),
    "a tensor beyond its storage": lambda f: with_encoder(whole(offset=1)),
    "a tensor far beyond its storage": lambda f: with_encoder(whole(size=(2, 2), stride=(2**61, 1))),
    "a tensor before its storage": lambda f: with_encoder(whole(offset=-1)),
    "a tensor that repeats its storage": lambda f: with_encoder(whole(size=(2**40,), stride=(0,))),
    "a tensor of negative size": lambda f: with_encoder(whole(size=(-1, -1), stride=(1, 1))),
    "a tensor of more sides than strides": lambda f: with_encoder(whole(size=(2, 2), stride=(1,))),
    "a size of floats": lambda f: with_encoder(whole(size=(2.0,))),
    "extension code": lambda f: b"\x80\x02\x82\xf0.",
    "huge bytes": lambda f: b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "huge bytearray": lambda f: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "modules nested deeply": lambda f: modules(200, twice=False),
    "modules that double 60 times": lambda f: modules(60, twice=True),
    "cut": lambda f: dumps(content(SMALL))[:-5000],
    "cut in its middle": lambda f: dumps(content(SMALL))[:40_000],
    "persistent id": lambda f: b"Vstorage\nQ.",
    "no dict": lambda f: dumps([content(SMALL)]),
    "no network": lambda f: dumps(EasyDict(encoder=None)),
    "a tensor for a network": lambda f: dumps(EasyDict(ema=torch.zeros(3))),
    "another class": lambda f: dumps(EasyDict(ema=Persistent("EDMPrecond", {}))),
    "a network without state": lambda f: dumps(EasyDict(ema=Persistent("Precond", None))),
}

REASONS = {  # where another part of the reader might refuse it too, or the call itself might fail
    **dict.fromkeys([
        "torch.load", "torch's own unpickler", "another function of torch.storage", "torch.hub", "EasyDict's names",
        "persistence's names", "a storage of no known type", "a module that a storage names", "a call inside a storage",
        *(name for name in ATTACKS if name.startswith("dotted")),
    ], "asks for "),
    "extension code": "by its number in a registry",
    "another version of the layout": "not of version 6", "a persistent function": "not of version 6",
    "a storage that is an array": "not made of a storage", "a parameter of a function": "no tensor",
    "a storage of another format": "format that is not known",
    "a storage of a machine of other byte order": "format that is not known",
    "a storage longer than its bytes": "in 8 bytes", "a storage of fewer numbers than told": "in 8 bytes",
    **dict.fromkeys([
        "a tensor beyond its storage", "a tensor far beyond its storage", "a tensor that repeats its storage",
        "a tensor of more sides than strides",
    ], "in a storage of 4"),
    "state of a dict": "a state to a dict", "state of a tensor": "a state to a ndarray",
    "modules nested deeply": "8 deep", "modules that double 60 times": "8 deep",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_plain_network_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("os", "system"))  # type: ignore[attr-defined]
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, ran)  # type: ignore[attr-defined]
    touched, path = tmp_path / "touched", tmp_path / "network.pkl"
    path.write_bytes(ATTACKS[name](touched))
    RAN.clear()
    before = set(sys.modules)
    with pytest.raises(HarnessError, match=r"is refused|is no pickle|is no network of EDM2") as caught:
        edm2_pickle.convert(path, tmp_path / "made")
    assert str(path) in str(caught.value)
    assert REASONS.get(name, "") in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not RAN
    assert not touched.exists()
    assert not (tmp_path / "made").exists()
    assert not {module for module in set(sys.modules) - before if module.startswith(("_imported", "dnnlib", "train"))}


def test_the_source_text_of_a_class_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds a whole network, and text that writes a file: the network is read. The official way of reading
    runs the text."""
    touched, path = tmp_path / "touched", tmp_path / "network.pkl"
    made = content(SMALL)
    for part in ("ema", "encoder", "loss_fn"):
        made[part].meta["module_src"] = f"open({str(touched)!r}, 'w')"
    path.write_bytes(dumps(made))
    assert sha256(edm2_pickle.read(path).tensors) == VECTORS["no-labels"]["state_sha256"]
    assert not touched.exists()
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = lambda meta: exec(meta["module_src"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    pickle.loads(dumps(made["loss_fn"]))
    assert touched.exists()


def test_the_attacks_would_have_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Python's own reader, so that the tests above mean something."""
    RAN.clear()
    pickle.loads(dumps([Calls(ran, 1)]))
    torch.load(io.BytesIO(zipped()), weights_only=False)
    monkeypatch.setitem(copyreg._extension_cache, 0xF0, ran)  # type: ignore[attr-defined]
    assert pickle._loads(ATTACKS["extension code"](tmp_path)) is ran  # type: ignore[attr-defined]
    assert len(RAN) == 2
    pickle.loads(ATTACKS["os.system as all there is"](tmp_path / "touched"))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(("change", "told"), [
    (lambda unet, kwargs: unet.__delattr__("out_gain"), "1 tensors are missing, the first is 'out_gain'"),
    (lambda unet, kwargs: unet.register_buffer("more", torch.zeros(1)), "1 tensors are surplus, the first is 'more'"),
    (lambda unet, kwargs: setattr(unet, "out_gain", nn.Parameter(torch.zeros(2).half())), "out_gain has the shape [2]"),
    (lambda unet, kwargs: unet.double(), "is float64, expected float16 or float32"),
    (lambda unet, kwargs: unet.out_conv.weight.data.view(-1)[3:4].fill_(float("nan")), "not finite"),
    (lambda unet, kwargs: unet.out_conv.weight.data.view(-1)[3:4].fill_(float("inf")), "not finite"),
    (lambda unet, kwargs: kwargs.update(num_blocks=2), "tensors are missing"),
    (lambda unet, kwargs: kwargs.update(model_channels=16), "has the shape"),
    (lambda unet, kwargs: kwargs.update(num_blocks=10**9), "num_blocks is 1000000000, expected a number up to 32"),
    (lambda unet, kwargs: kwargs.update(model_channels=2.0), "model_channels is 2.0"),
    (lambda unet, kwargs: kwargs.update(channel_mult=[1] * 9), "channel_mult is"),
    (lambda unet, kwargs: kwargs.update(channel_mult=[1] * 5), "more levels"),
    (lambda unet, kwargs: kwargs.pop("img_resolution"), "img_resolution is None"),
    (lambda unet, kwargs: kwargs.update(sigma_data=float("nan")), "sigma_data is nan"),
    (lambda unet, kwargs: kwargs.update(clip_act=None), "another clip_act than 256"),
    (lambda unet, kwargs: kwargs.update(rotary=True), "not known here: ['rotary']"),
])
def test_a_network_that_is_not_what_its_settings_say(tmp_path: Path, change: Any, told: str) -> None:
    made = content(SMALL)
    state = made["ema"].meta["state"]
    change(state["_modules"]["unet"], state["_init_kwargs"])
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(made))
    with pytest.raises(HarnessError, match="is no network of EDM2 that can be used") as caught:
        edm2_pickle.read(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(("encoder", "told"), [
    (Persistent("StandardRGBEncoder", {"_init_kwargs": {}}), "encoder is a 'StandardRGBEncoder'"),
    (Persistent("Other", {"_init_kwargs": {}}), "encoder is a 'Other'"),
    ("text", "encoder is a 'str'"),
    (Persistent("StabilityVAEEncoder", {"_init_kwargs": {"final_std": 1}}), "settings that are not known"),
    (Persistent("StabilityVAEEncoder", {"_init_kwargs": {"raw_std": [1, 2]}}), "settings that are not known"),
    (Persistent("StabilityVAEEncoder", {"_init_kwargs": {"vae_name": "../../etc"}}), "settings that are not known"),
    (Persistent("StabilityVAEEncoder", {"_init_kwargs": {}, "scale": np.ones(4, np.float32)}), "another scale"),
])
def test_an_encoder_that_is_not_known(tmp_path: Path, encoder: Any, told: str) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(with_encoder(encoder))
    with pytest.raises(HarnessError, match="is no network of EDM2 that can be used") as caught:
        edm2_pickle.read(path)
    assert told in str(caught.value)


def test_without_an_encoder_latents_are_the_published_ones(tmp_path: Path) -> None:
    made = content(SMALL)
    del made["encoder"]
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(made))
    assert edm2_pickle.read(path).config["vae"] == "stabilityai/sd-vae-ft-mse"


def test_one_storage_cannot_stand_for_many_tensors(tmp_path: Path) -> None:
    """Weights may share their memory in the file; a folder far larger than it is not written."""
    made = content(SMALL | {"model_channels": 32})
    shared = Calls(storage, payload(count=64 * 128 * 9, data=b"\0" * (64 * 128 * 9 * 2)))
    for module in made["ema"].meta["state"]["_modules"]["unet"].modules():
        if "weight" in module._parameters:
            weight = module.weight
            module._parameters["weight"] = Calls(tensor, shared, 0, tuple(weight.shape), weight.stride())
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(made))
    with pytest.raises(HarnessError, match="larger than the file"):
        edm2_pickle.read(path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([
    b"(", b")", b"t", b"R", b"}", b"]", b"a", b"s", b"b", b"0", b"2", b"N", b"\x81", b"\x93", b"K\x02", b"\x85",
    b"\x86", b"\x87", b"o", b"q\x01", b"h\x01", b"Q", b"\x8f", b"\x90", b"Vtype\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch.storage\n_load_from_bytes\n", b"ccollections\nOrderedDict\n",
    b"cdnnlib.util\nEasyDict\n", b"ctorch.nn.modules.container\nModuleDict\n", b"Vstate\n", b"Vversion\n", b"K\x06",
    b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", b"Vclass\n", b"Vema\n", b"cbuiltins\neval\n",
    b"C\x04\x80\x02N.",
]), max_size=30).map(b"".join))
def test_any_operations_are_plain_data_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(b"\x80\x04" + data + b".")
    with contextlib.suppress(HarnessError):
        edm2_pickle.read(path)
