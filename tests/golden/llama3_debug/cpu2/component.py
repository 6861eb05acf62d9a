# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
#   digest  "95a6b635c5aaf277cf475c99625748d02a13a36fb9d1b576ae5b5feb54fadf94"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s local_cwd component.py:train --name my-run
#   torchx run -s local_cwd component.py:train --help      # every argument
#
# The job is read-only here: change the recipe, or use --set, and render it again. To look at it:
#   python -c "import titan_recipes.config.job as j, component as c; print(j.to_toml(j.decode(c.JOB)))"

import os
import sys
import time
from typing import Dict, List, Optional

import torchx.specs as specs

JOB = (
    'eNq1WMuO67gR3fMrBG2ymWn40XZ3DzABJgGSTQLMIoMsGgZBSSWbMCXqklR3e74-p0i9_JgLzCIN3GuzWCSriqdOFf3u'
    'qNQdHUSrGsp-znJjVKO2sqKiP-big5zXtuWJ1dP6aZUL3zeNcheW_JLts39nnXJYGshl_-Kl2TaDfjhR5m3vSspsnf16'
    'CSfb_sVnyl_aUtufMO-Iska3fSDPC1RmVBdsl4uKatWbIDuj4rll129y4ehbrx10Ifnrz7AlF0EdefguMvwNduc_pFEy'
    'fxo0Ft8P2LqDuypQxdvkQrw3tiJzELVqtLnM7sMK3WC42e1FK426IAwY8uBEquLvax6cP5Zj_irTQozquh0GL_tX8WFL'
    'VUivf-cgb1bPr6K1rpHUxbX042onnO1IInBBQbRb8d_TSgRNkpqCqkq30d9aGU_iVEvlPQUvOxVOyZ1gz9TiBLeQlbbF'
    'HYZk__tBdE63QaoaEpnmhvtN24p3DjvQgLhEy8Sx63EGtFnEtrOE91bt5QoN__m0mVPt2af71z5rVHnSLf2U6eCzf_76'
    'm890zchwlCn-115-yAinxvm___obXwh9dVSGQ_IlHewJhlbxazqaw9KROssGF-su8qiLQTpAbrjcFKDDHBeemAZP8e5z'
    'jqSjzo6LKhXUYdhoiFmgryDPFL3k73D71Ne14YOC60n44AgIao9THEu4Trh-l7Zt-0Z2zpYY_bjmIDtba4MFB0GtKgzJ'
    'STJt4dUH4OAUzJC1NVUyP-mNE7kYxzUShO9rNUqcVGXQHxQvcZJ9Ktf0HWTb8eAhhr5VnT_ZcH38zeTCjpuZmEsUnC4R'
    'b2OPoz278ZiA27SusMpVY9Qq7eNUaY0FZBmY9_4XizNDkSdpDX1ljExwGxcMJ32qtioWgLZd0A1f-Mxxv1Sq-W8ujEuw'
    'WW1Fgaxbx9Fb_L5J32H-lKCv4pP08RRAjaW6xPm10E1nqKE2qDDQZN17qnJByhmEJ1AndSsLVZ4_k-ujWQbABkaq3rBl'
    '6V6ivo8EAdAGZSYBUBOPhcs4KAoA9yQKly56VVqPbMsFgCixe437t26wU7wDMLqNiGOEIzF4iQ-V0YjqIJp4Y-BphAi0'
    'ZWB-KE8jeT2Lo7HFrfRVePomDXEM1ptX0agvyQzHQ07M0bHn1XhP4HVpkUVWzWGpRl9YHLYbduaLkPtcpZioZKw239Vw'
    'iGl5vcmxnPC44kGsDou7GGPzxHFggyJYkLOf1p0TdTLjgCrhB-hzFqcdOkQ8JcQsclQTx2e6hpT4MN8YMto36SLkKGES'
    'MpqLE8w7cnXkxL1W8SdgaJ7GjrWvOqxME4nVkRwD1PKhlKIyxOybN1qeMGShsd5PCrc5FfEgb3ZZuN_Bo5Ye7g-W7Zmf'
    'vg1sHlmXNcNQkO4W19r5AOSrI6wiWDXV3_UDbaP-lDJPpqrCS1IQ7_XGzOQgrv-x_lv-HR1Z-o_E8vc6jS6dvcqTR6dx'
    'zXNhHltUZXRDI0-i-sUK9Ci6d3OMXmQminiZSJObkqC0ye91HSgmMMmjO4t4gfiouECDv25sWpw5TH0HU7eLS9s0kQOp'
    'rRLtgKOBUa4aiGJ57izIf6yFo98D9mow7pSWclb3o95cIBaTucD_5D4Uw3S_wkgHrYb4zO3RlThB07axE4xbX00jyU_1'
    'BPr7KfmtVyhhv9PMZwmcsZIu976dvN4Z0bOI3j0XpixsUh-WD4mLIJ4JVcbgKrHfOdb2aBRzbgI4fZWmr7hJsE00ONXZ'
    '96n7GFMO-8wxnJsZdDfAiSfw7IPpeNiVZ2i9uPeINVEuL3i0vbVcqDwZij0KWhXJZTpVUHjKCWpRDiEHnZUEigOGup7R'
    '2jANdmiKiktklfkJ0Fh6chZK7gkwptjyj3XYdpN1Q-tS9NUxVsHV0058aN8rg7uTV7MMYQp2yeoeoII97ZEZJExgrfgF'
    'hMoLYk8eX_HvbcFhZ9CPLRA_RBpyhCaBe_KK29ThKcMsHf1aZJNuUfBQYzibRgg-McMo9xSx8zrfM5eLJIsNVMr2pXtj'
    'mAel6oKeSZcgO2VS38VbTAvS41GOfVUu0GXGGjTcCw5uepPCNPp-a2LzBVx81d0rv5bWsuSsQHVtmTdOVqdSjs4y2Da_'
    'PTCtK_sCuXR3eIoY8ACHYswWZx-Bkw5wbpopRLPNj_XYzkfH51crmeoOkRwk2k7C6cP7hTW2K_R13Gs8mFunOWC96Ov5'
    'oYi_P3gJRFIdnwFXKjq-J6jWX6zHTbLMp9SbMCne0zs7WHSgXC4OsWkDwgOKczRXHKNB1w7cQJafNVx3Y6T4AHSHNr8W'
    'T-42g6fYZmh3pK5id5X0BrdXsYcdNabK6anRMnHgVLLYD5C8riLZ3JaQu1ZXzrp_tuu97m-HfnI_t7bPV5b8_1vJyCl4'
    'qRKlCM4MFHQ5d9RLKT__2muqBmcOFLvsHJbPJ6ePGoHldqdRcv7BgFvHI8DCkXvbqX2x3-7KnVL15uWlrJ9fduXb236z'
    'e3l-rVYbtd6q7b4u3qp1sXvZK9oVu5qK3XOtqvrtORdF31ZmIJHrX35Qunyg4SHNrZHTFU35hviigFR4QVlnqilvRGyL'
    'h4Y6Gdul9jnOll2UhfTRpQ9KH49fN8iESvOFqbLsI6dxbRvvfn31e0Wqu-vV5vnBuy692SYBJFMjuXwkxV8M-K0Tf3da'
    '77cv640AVXXpjHgcJ-R-_bZ7hb54p_bjIP4H8I7Nbg=='
)
RECIPE = 'llama3_debug'
ENV = {
}


def train(
    outputs: str = 'outputs',
    name: str = '',
    image: str = '',
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    cpu: int = -1,
    gpu: int = 0,
    memory_mb: int = -1,
    max_retries: int = 0,
) -> specs.AppDef:
    """Trains one titan-recipes job.

    Args:
        outputs: folder that the run directory is made in, as the job sees it
        name: name of the run and of its directory; default: the recipe's name and the time
        image: container image; default: none, the Python that launches
        env: more environment variables, KEY=VALUE,KEY=VALUE
        mounts: mounts of the container, as in torchx: type=bind,src=/host,dst=/container
        cpu: cores of each node; -1 = not asked for
        gpu: GPUs of each node
        memory_mb: memory of each node; -1 = not asked for
        max_retries: how often the scheduler restarts all nodes
    """
    name = name or f"{RECIPE}-{time.strftime('%Y%m%d-%H%M%S')}"
    args = [
        "-P",
        "-m",
        "titan_recipes.launch.node",
        "--job",
        JOB,
        "--run-dir",
        os.path.join(outputs, name).replace("$", "$$"),  # $ starts a macro of torchx
        "--nodes",
        "1",
        "--node-rank",
        specs.macros.replica_id,
        "--master-addr-env",
        specs.macros.rank0_env,
        "--run-id",
        specs.macros.app_id,
    ]
    environment = {**ENV, **(env or {})}
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="trainer",
                image=image,
                entrypoint="python" if image else sys.executable,
                args=args,
                env={key: value.replace("$", "$$") for key, value in environment.items()},
                num_replicas=1,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
