# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_1b@0.1.0, plan h200x8"
#   digest  "4824269222aabfd83ac9a3ab09ab0412b4bb3a940aa5d34c692f6c44073539a6"
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
    'eNq1WEuP47gRvvNXGDqn3ZJs97gDbIBsgMUeAuwxh4ZBUBJlE02JGorqxxz2t-erol62e4LkkAZmbBYf9eBXXxX94nVp'
    'On0SrWr05pdNYq1q1E5mRSLetO-Na0mabrNtmoh-aBrlP0nyT1q32W3zTfbrpvau2fSlV6G8bLDjH_u_bvLDpjDW0gHB'
    'veq2T0SlazXYIDur-NRLlqYfx0R4_X0wXvck-9sv0JWIoM40fBEb_I1GJX-Jo87r4JVpMT7hTAxLFXRFuxMhXhpXaXsS'
    'tWqM_VxcgnrTYJin-6NopVWfcA_j7Amji1YVDXY5Bq9v8_go6JuMO5_2oq7bcXDMnnPx5kpVyN78oNBl-TE_4DDnG6k7'
    'Plo_pAfhXadluOigIDqk9LdNRTBa6qbQVWVadjX4QYtLLVXf69DLToVL9IijBxV-JStdi9sJ0YOXk-i8aYNUNSQyzo03'
    'Vyvb6ykoWzalL5WFTopQGZxnr2GQde-yxk3IWYwrFxdzvtyI9xA7b86mVVY26kP2mLW6nYIiXuh-gSio5CiIczfAIZhG'
    'Io4qJAyAPL1G1R-t3vAiV280VIfN77xEvOiPTpfhFKMRT-s1XK34azyP4tpp9Sob3Tj_Kc-mGKW9G3ypJ4TEEJ-WyNLE'
    'n4_bUpUX_RhMUO1DzIv-MYLncXL4cd6z5ZAmdGVed46OaHDHD7zhkdPjAenxkP1KKisV1Gk0Y7yzoD-CfNXsN31HIC5D'
    'XVs9gaEPXgPE7Xm-RzYQAPTRk3ZoZOddidFDRnH3rjbxbnWrCqvlLJmP6NUb0OgVzJC1s1V0Pq6bJhIxjenm6QrTSeIl'
    'YGDeGO-L7F35ZugISZPi8Qb6VnX9xYVr9TeTKztuZjidkeymxG1Zd17ZM-oJAIPzhVO-msJWmZ6nSmcdcoYy4z4AxUpp'
    'ANextMZ6Za30qn3t5w2jpnfVVsUqo1wXTENAWLjz75Vq_pUI6yPq0nQnCkAi4-Ezf8_j94NYGOIo3hnqsgKPffJ8JkzT'
    'Wd3oNqgwUnA99LpKhFbeIkBBd9K0slDl63v0fbLLIjGAkmqwZFq8GV7P_JaCeVxA4k4SAIf1wmloYgHyJYrCZ8d-la43'
    'rU4EsChx_MwE8JFgx2TMqCOUI7V4zz6ZhivesiBMC6tRJyba3IuzdcWt9JDl4oZXiGqIXEdmmhx4QpynOyq7QTqkkFNL'
    'RKrJCxKHXU5ufGjQBmU4sSTM84pOTQpekj3dL_GIZ3l9yrmc0HhIaVDpYjiv7mGKypaiQBYxUpCx786_RuImtgJRwxOQ'
    '9yKOJ3QIdkyHReR1rSlI8w3EtIf91mpr-iZegZwkxEzWUHWEeWevY9peL-kvwM8yjRPrvuqwM07EmoLMGGGWjEUcdYlT'
    'bzlorWFMQev6fl5wm1Cq_2xLeXPKyv0OHrX6y_NBvQOx0_exEjAV08owlsO7zbXxfQDo1RlWaVi11P8vVlv1Py2myViR'
    'aEsM4v26KSspiNlvVBZ-vkaW_VvMmPs1jSm9u0qWr7RRvfRhGTv0BFZ1E0micnL9-Sq6d3OEXqQnqnoZGZOaoqCMTe7X'
    'erBLIIoPF8d4gfiM_Nce3HVj00rnOPUfMHW7uXRNw_ynW9aD2LcVMEo1A1EsXzsH5p8q4eT3iL0abDunpVyWz43YUh1W'
    'k4nA_9q_Kcs1CLyDDA9GjRFaaO5KHMHpWm5G-fCraaT5pZ5hfz8lvw8KFeyHXigtwpMr6frs28nrkxE_h_jd02HMwya2'
    'ZgmPEvGqUWAsbhKHvXJhZ4uIdCO-9Udph4o6BNewtbHGvsytx5RxOGcJ4dLJoLUBTHoNmv1impVduYWujRoPLodyfb-T'
    '4b22mlsTFPPpK5oVSXU6VlDXJUS4kCA-JXFaqcFzAFI3EGQb4kL0fLL4ZGpZ3h-N0-idschvgWXND4-pELtutnHsXoqh'
    'OnMRTLcH8Wb6Af32j7nribOEYx3cmtp7IAv2tGeikTAjttJQi8oLdo9-X5HwbdUhZ9CS3cKexK7VEeCzU9S_jm8qYmp2'
    'a5VRpkXRQ52hjJpAuCWWUX7L6Dkul00lI8q4g4oZv_ZuivK4qPpE02RKfozExouOmDfE7ltOjVUi0GdyHRqvBYqbwcYo'
    'Ta7fmth8ABwfdXekF1smS8oLVNiWuOPiTCzn6C2Da5NbhXFfORTIpjvlMWKAAxzimK10nwGTDphumjlEi81fryM7v1Kf'
    'XO0kujsxPUj0nRrax_fP3NZRv_HFXBbnAPViqKeKkdMr9CdvASbW6SFwtcTwi0LX5oPWUZcskzn_ZkiKl_jKDw4dKJWM'
    'E7duAHhAgWZzxZkNunZgRuyEGVdS7eVIkQK0iS65Fs_uNqOnOGZseaSpuMOK60a3U25hpxVz9ex1Y2RkwblskR8gelMx'
    '45xurbvqdOWy8L9seo-r5pZ_kFgeNqvGfG3B_7-NZCrBG1XrGLmFeIIpF8fXUnr4tdc8DaocmXXdNazfTfyShh6QWaPk'
    '8lMFtY1ngISCtj_m-_zpOc9zpYq6Ou5U-ax2qkif8W-f5cW-KHbqeZ8qdah2-xJL66dyv0-_7Q67Z4UOvhjayo7kMf_e'
    'lMffm1C5EKzxEU2NkTeVnjMNEUbpqPB2ct5Wy41xUzy209HcLjbPPFt2LAvxo4sfOn787IGDLKgMXZoqy4H5jIrbBIDs'
    '6erHjlh599nzfpfuv3rXxTfbJDl8owSf2smrxxL_bEBvHtaS7w7HDJFLBQiri8pYL8PxafeUZdnxG_2so9u3k_g37FTl'
    'Gg=='
)
RECIPE = 'llama3_1b'
ENV = {
}


def train(
    outputs: str = 'outputs',
    name: str = '',
    image: str = '',
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    cpu: int = -1,
    gpu: int = 8,
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
