"""How far a device's own network, transformers' model and float32 are apart in their logits, by chat: what preflight's
tolerance for bfloat16 rests on (`fgod.train.preflight.NETWORK_LIMIT`).

    python benchmarks/bf16_paths.py models/qwen2.5-coder-0.5b --chats 9

On the CPU, with weights rounded to NVFP4. Chats: wordings of traindata/suites under the default system prompt and
without one. By chat: the relative norm of the difference of all logits, and of those of the median token.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch import Tensor

from fgod.chat import Chat, ChatSettings
from fgod.data.probes import load_probes
from fgod.data.rows import NO_SYSTEM, Message
from fgod.model.chats import ChatFormat
from fgod.model.load import read_config
from fgod.train.device.network import Network
from fgod.train.device.ops import PLAIN
from fgod.train.device.weights import as_module, stream_in
from fgod.train.preflight import token_gaps

SUITES = Path(__file__).resolve().parents[1] / "traindata" / "suites"


def apart(ours: Tensor, theirs: Tensor) -> str:
    tokens = token_gaps(ours, theirs)
    return f"{(ours - theirs).norm() / theirs.norm():.3f}  {tokens.median():.4f}  {tokens.max():.3f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    masters = stream_in(args.folder, read_config(args.folder), "fp32", torch.device("cpu"))
    network = Network(masters, PLAIN, torch.bfloat16, "amax")
    amaxes = torch.stack([masters.groups[group].abs().amax() for group in network.scaled])
    network.measure_scales(amaxes.float(), torch.arange(len(amaxes))[:, None])
    models = {dtype: as_module(masters, dtype, "amax") for dtype in ("bfloat16", "float32")}
    chat = ChatFormat.of_folder(args.folder, ChatSettings())
    probes = load_probes([SUITES / "identity.yaml", SUITES / "general.yaml"], SUITES.parent)
    print("norm of all logits, of the median token's, of the worst token's")
    for probe in random.Random(args.seed).sample(probes, args.chats):
        for system in ("", NO_SYSTEM):
            ids = torch.tensor([chat.prompt_ids(Chat((Message("user", probe.prompt),), system))])
            theirs, exact = (models[dtype](ids, use_cache=False).logits[0].float() for dtype in models)
            ours = network.logits(ids)[0].float()
            print(
                f"{system or 'default':8}{ids.shape[1]:4} tokens  network, module {apart(ours, theirs)}  "
                f"network, float32 {apart(ours, exact)}  module, float32 {apart(theirs, exact)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
