"""The manifest is read strictly, written deterministically, and described by its JSON Schema."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pi05_runtime.errors import BundleError
from pi05_runtime.manifest import FILE, SCHEMA, Manifest, encode, json_schema, read_manifest
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def pristine(workspace: Path) -> Path:
    """A bundle to read only."""
    return workspace / "artifacts" / "bundle"


@pytest.mark.parametrize(
    ("schema", "advice"), [(SCHEMA + 1, "update"), (SCHEMA - 1, "export the bundle again")]
)
def test_other_schema(bundle: Path, schema: int, advice: str) -> None:
    with edited(bundle) as manifest:
        manifest |= {"schema": schema, "field_of_that_schema": True}
    expected = rf"schema {schema} found, this runtime reads {SCHEMA}; {advice}"
    with pytest.raises(BundleError, match=expected):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(colour="red"), r"unknown field `colour`"),
        (lambda m: m["geometry"]["vision"].update(colour="red"), r"`colour` - at `\$\.geometry\.vision`"),
        (lambda m: m["geometry"]["vision"].update(depth="3"), r"Expected `int`.*\$\.geometry\.vision\.depth"),
        (lambda m: m.update(steps=[1, 2.5]), r"Expected `int`, got `float` - at `\$\.steps\[1\]`"),
        (
            lambda m: m["interface"].update(prompt_format="json"),
            r"'json' - at `\$\.interface\.prompt_format`",
        ),
        (lambda m: m.pop("license"), r"missing required field `license`"),
        (lambda m: m.pop("schema"), r"missing required field `schema`"),
        (lambda m: m.update(schema="1"), r"Expected `int`, got `str` - at `\$\.schema`"),
    ],
)
def test_field_is_named(bundle: Path, edit: Edit, message: str) -> None:
    with edited(bundle) as manifest:
        edit(manifest)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{message}"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["targets"][TARGET]["engines"].pop("denoise"), r"engines: \['prefill', 'vision'\] found"),
        (lambda m: m["targets"][TARGET]["files"].remove("tokenizer.model"), r"lacks \['tokenizer\.model'\]"),
        (lambda m: m["targets"][TARGET]["engines"]["vision"].update(file="x.onnx"), r"lacks \['x\.onnx'\]"),
        (lambda m: m["files"].pop("schedule.safetensors"), r"files: lacks \['schedule\.safetensors'\]"),
        (lambda m: m.update(default_steps=77), r"steps: \[1, .*10\] found, \[77\] expected too"),
        (lambda m: m["golden"].update(steps=[77]), r"steps: \[1, .*10\] found, \[77\] expected too"),
        (lambda m: m["golden"].update(steps=[]), r"golden\.steps: none found"),
        (lambda m: m.update(prompt_buckets=[64, 32]), r"prompt_buckets: \[64, 32\] found, ascending"),
        (lambda m: m.update(prompt_buckets=[]), r"prompt_buckets: \[\] found, ascending"),
    ],
)
def test_contradiction_is_refused(bundle: Path, edit: Edit, message: str) -> None:
    with edited(bundle) as manifest:
        edit(manifest)
    with pytest.raises(BundleError, match=rf"{message}.*export the bundle again"):
        read_manifest(bundle)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{'schema': 2}", b'{"schema": 2, "name": "\xff"}'])
def test_broken_json(bundle: Path, data: bytes) -> None:
    (bundle / FILE).write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json: .+; copy the bundle again"):
        read_manifest(bundle)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"manifest\.json: no manifest found \(No such file.*check the path"
    ):
        read_manifest(tmp_path)


def test_round_trip(pristine: Path) -> None:
    manifest = read_manifest(pristine)
    assert encode(manifest) == (pristine / FILE).read_bytes()
    assert msgspec.json.decode(encode(manifest), type=Manifest) == manifest


def test_bytes_do_not_depend_on_the_order_of_insertion(pristine: Path) -> None:
    manifest = read_manifest(pristine)
    turned = {
        name: dict(reversed(getattr(manifest, name).items())) for name in ("files", "components", "gates")
    }
    assert list(turned["files"]) != list(manifest.files)
    assert encode(msgspec.structs.replace(manifest, **turned)) == encode(manifest)


def test_json_schema_in_the_bundle_is_this_one(pristine: Path) -> None:
    schema = json.loads((pristine / "manifest.schema.json").read_bytes())
    assert schema == msgspec.json.decode(msgspec.json.encode(json_schema()))
    described = schema["$defs"]["Manifest"]
    assert set(described["properties"]) == set(Manifest.__struct_fields__)
    assert set(described["properties"]) - set(described["required"]) == {"closed_loop"}
    assert described["additionalProperties"] is False


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)
    elif isinstance(value, str):
        yield value


def test_manifest_tells_nothing_of_where_and_when_it_was_made(pristine: Path, workspace: Path) -> None:
    found = list(strings(json.loads((pristine / FILE).read_bytes())))
    assert TARGET in found
    for text in found:
        assert not re.match(r"[/\\~]|[A-Za-z]:[/\\]", text), "an absolute path"
        assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", text), "a time"
        assert socket.gethostname() not in re.split(r"[\s/@]", text)
        assert str(workspace) not in text
