"""LeRobot's own PI05 network, timed in a process and an environment of its own.

    PYTHON -P lerobot_process.py REQUEST.json ANSWER.json

It imports nothing of this project: only torch, transformers, safetensors and an installed `lerobot`, whose
packages' own start-up, which wants far more, is left out by empty packages in its place. The network's code
is LeRobot's, untouched; other sizes than the real ones are given to it through its two tables of them.
"""

import dataclasses
import importlib
import importlib.util
import json
import sys
import time
import types
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EMBEDDING, TIED = "model.language_model.embed_tokens.weight", "lm_head.weight"
PALIGEMMA = "paligemma_with_expert.paligemma."


@dataclasses.dataclass
class Config:
    """What PI05Pytorch reads of its configuration, with LeRobot's defaults where it matters to inference."""

    chunk_size: int
    image_resolution: tuple[int, int]
    max_action_dim: int
    dtype: str = "bfloat16"
    paligemma_variant: str = "prefix"
    action_expert_variant: str = "expert"
    num_inference_steps: int = 10
    min_period: float = 4e-3
    max_period: float = 4.0
    rtc_config: object = None
    compile_model: bool = False
    compile_mode: str = "default"
    freeze_vision_encoder: bool = False
    train_expert_only: bool = False


def module(name: str, **attributes: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(attributes)
    sys.modules[name] = made
    return made


def load_modeling() -> Any:
    """lerobot.policies.pi05.modeling_pi05, without the packages around it."""
    spec = importlib.util.find_spec("lerobot")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("lerobot is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for package in ("", "policies", "policies.common", "policies.pi05", "policies.rtc", "utils"):
        name = f"lerobot.{package}".rstrip(".")
        module(name, __path__=[str(root / package.replace(".", "/"))])
    true = lambda *_, **__: True  # noqa: E731
    module(
        "lerobot.utils.import_utils",
        _transformers_available=True,
        require_package=true,
        is_package_available=true,
    )
    module("lerobot.configs", PreTrainedConfig=type("PreTrainedConfig", (), {}))
    module("lerobot.policies.pretrained", PreTrainedPolicy=torch.nn.Module, T=typing.TypeVar("T"))
    module("lerobot.policies.rtc.modeling_rtc", RTCProcessor=type("RTCProcessor", (), {}))
    module("lerobot.policies.pi05.configuration_pi05", DEFAULT_IMAGE_SIZE=224, PI05Config=Config)
    return importlib.import_module("lerobot.policies.pi05.modeling_pi05")


def resize(modeling: Any, geometry: dict) -> None:
    """Makes LeRobot's code build a network of other sizes: what it has as constants comes from `geometry`."""
    stacks = {
        name: modeling.GemmaConfig(s["width"], s["depth"], s["mlp"], s["heads"], 1, s["head_dim"])
        for name, s in (("prefix", geometry["prefix"]), ("expert", geometry["expert"]))
    }
    modeling.get_gemma_config = stacks.__getitem__
    vision, tables = geometry["vision"], modeling.CONFIG_MAPPING
    built = modeling.PaliGemmaForConditionalGenerationWithPiGemma

    def paligemma(config):
        v = config.vision_config
        v.hidden_size, v.intermediate_size = vision["width"], vision["mlp"]
        v.num_hidden_layers, v.num_attention_heads = vision["depth"], vision["heads"]
        v.patch_size, v.projection_dim = vision["patch"], geometry["prefix"]["width"]
        config.projection_dim = geometry["prefix"]["width"]
        config.text_config.vocab_size = geometry["vocabulary"]
        return built(config=config)

    class Sized(dict):
        def __getitem__(self, name):
            config = tables[name]
            return (
                (lambda **sizes: config(**sizes | {"vocab_size": geometry["vocabulary"]}))
                if (name == "gemma")
                else config
            )

    modeling.PaliGemmaForConditionalGenerationWithPiGemma = paligemma
    modeling.CONFIG_MAPPING = Sized()


def build(request: dict, modeling: Any) -> Any:
    config = Config(
        chunk_size=request["horizon"],
        image_resolution=(request["geometry"]["vision"]["image_size"],) * 2,
        max_action_dim=request["geometry"]["action_width"],
        compile_model=request["compiled"],
        compile_mode=request["mode"],
    )
    with torch.device(request["device"]):
        model = modeling.PI05Pytorch(config).eval().requires_grad_(False)
    state = load_file(request["checkpoint"], device=request["device"])
    state.setdefault(PALIGEMMA + EMBEDDING, state[PALIGEMMA + TIED])
    model.load_state_dict(state, strict=True)
    return model


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    start = time.perf_counter()
    modeling = load_modeling()
    resize(modeling, request["geometry"])
    model = build(request, modeling)
    device, given = request["device"], load_file(request["inputs"])
    host = {name: t.pin_memory() if device == "cuda" else t for name, t in given.items()}
    views = range(len(host["images"]))

    def decide(steps: int) -> torch.Tensor:
        """From preprocessed images and token ids on the host to normalised actions on the host."""
        images, tokens, noise = (host[n].to(device, non_blocking=True) for n in ("images", "tokens", "noise"))
        mask = torch.ones(1, dtype=torch.bool, device=device)
        seen = torch.ones(tokens.shape, dtype=torch.bool, device=device)
        pictures = [images[i][None] for i in views]
        return model.sample_actions(
            pictures, [mask for _ in views], tokens, seen, noise=noise, num_steps=steps
        ).cpu()

    actions, samples, prepared = {}, {}, {}
    for number, steps in enumerate(request["steps"], 1):
        until = start + request["seconds"] * number / len(request["steps"])
        began = time.perf_counter()
        actions[str(steps)] = decide(steps)[0].float()
        prepared[str(steps)] = time.perf_counter() - began
        times = []
        for i in range(request["warm_up"] + request["repeats"]):
            began = time.perf_counter()
            decide(steps)
            if i >= request["warm_up"]:
                times.append((time.perf_counter() - began) * 1e3)
            if time.perf_counter() > until and len(times) >= request["fewest"]:
                break
        samples[str(steps)] = times
        save_file({f"actions.{n}": a.contiguous() for n, a in actions.items()}, request["actions"])
        answer = {
            "samples": samples,
            "prepared": prepared,
            "versions": {n: metadata.version(n) for n in ("lerobot", "transformers", "torch")},
        }
        temporary = Path(f"{answer_file}.partial")
        temporary.write_text(json.dumps(answer))
        temporary.rename(answer_file)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
