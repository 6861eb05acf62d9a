# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_405b@0.1.0, plan h200x512"
#   digest  "1439117ca9e1979c4f9ffeecf355d816a299e678dde4446dabee228285cb05d9"
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
    'eNq1WMmO67oR3esrDK1vuy1PbQd4Ad5bBFlkn0XDICiqZBOmRF2K6uEu8u05RWrykIdkkV7caxaHGnjqVFHvjpRu6JTU'
    'sqLFb4vUGFnJjdiudnmafJBrta1Zvlpmy1WatF1VSffNkn_wysVmmS2w-I9F6Wy1aJWTXl1-LGS7aLrc6PZCxV8W2XK9'
    'qLQxfFbrqWnTpKBSdsaLxshw_mW9Wn3tsnWaOPrZaUctS__6G_SmiZdnHr4nC_z1JqY_4qhx5J3UNcYnnIqhkp4K3p0m'
    'yXtlCzKnpJTQ_z05CAN0hWG23xy2SS2M_IavLFjvMbyQLOLogNH1YxQcEv4l-s2YLcu6H-026-0h-bBK5qLVvyguWO9w'
    'nnWVgNcsoZfVLnG2IeEv5CXvW_HfcpV4TYKqnIpC18HfUpqWkkspZNuSb0Uj_SX65e2VauhwM5myNe7LRzfeT0njdO2F'
    'LCERca6_y3hsH5plsKVV0kApx0l569hRGGTspyhxHWKUAgPJRZ8vd-ItxNbps66lEZX8Ei1mDbGyQ3ZcQxdfM0AGjWzd'
    'fpucmw4OwTSWhcBCMgDhBmf77SLus-WCoNsv_o4lPxbQ0VGt4sThB_TwfdNXQ8qfYoSihpbgfhF-Rh0c7IbkVVRUWfct'
    'zjrvpa3tnKIBOzHspynaPPGv16WS6kKvXntZv8T8aV8jrF6HKLyOe5YhzClfo6PG8hEVLv4lbHgNSfSCJHrhJGKlhfTy'
    '1BvS36SnLy-uFKLBvxGeS1eWhg31rqOk9Y4A8Po83m4wEcB00Ze6q0TjrMLoJePrcLbU8caplrkhMUrGI1r5AZA6CTNE'
    'aU0R3Y_rhok0GcYMCAbIapA4AXToj5AGk-xTuqprINsMivs7aGvZtBfrb9XfTc7suJsJqQ4i0Ar3Zex5Zk-vxwMO1uVW'
    'umIIW6HbMKWsscgkzpfHAOQzpR6cGKQl1ktjhJP1dcrUXtOnrIt8lme28bpiKEws-3shq3-miQmZFighByaygMJj-L2O'
    'v3fJxBuH5DPgXxSguO8wnyW6agxVVHvpe6Yuu5aKNCHpDOIDthW6FrlU18_o-mCWQWYAJEVn2LJ4MWF94DlQEnDvkc-D'
    'CMAJiuE0VAUBMiaK_HcT_FK21TWlCbAocP5IEMgthl0g6oA6RjmSK-zZpsNwxmYGPGpgNqrJyKbJ2dj8XrpegXXv-IYp'
    'iEm3Z6zBg2wdqHa4J9V0wiKNrJzCUgyesNhv1uzKF4E8OM-ZP2Gik3xwmocl2f5xiUNQ1e0pZzUgcrfiQUF5d55dxhCZ'
    'JUeCLQpoQdZ-WneNlM6cBQqHM6D1SRxPaBDwmBKTyFFJHKjxFmLqw35jCKW5itcgBgnzk9FcPWHe2VGM-e2S9gIQTdM4'
    'sWyLBjvjRKw2yI4ea2lf5lGxQvpNB8019GlobNuOC-6TSrbftRJ3p8zcb-BRTU_PBwF3zFA_-3oQCJlX-r5QPmwutWs9'
    'gC_PsIpg1dQePFlt5P-0mCdjXeItMYiP64bU5CBmf8tQGv7zGqHaj5g1j2sqrZy9S6PHVVw1nZ_GFt2Ckc1AlKifoQY9'
    'i-7DHKMXKYqCryJrcsfkpTbp41oHhvFM8_5iA14gPoMDyIHA7mya6eyn_gRT95uVrapAglQHPYh9XQCjXDcQRXVtLNh_'
    'qIaD3z32SlDumJZiWt4O66YKMZtME_xL7kOaUIfAO8hwr2UfoYnqbsQRnLYOzWo4_GYaaX4pR9g_TomfnUQV-0UTpUV4'
    'hmo6P_t-8vZkxM8ifo90GPOwik1bGkZpciVUGYObxGHXUNyDRcy7Ed_0pUxXcJdgq2BtrLPvY_sxZBzOmUI4dTNobwCT'
    'lkCzT6aDshu30Ltx8xFqopjf72B42RngsSVDoUlBryK4TMcKCjc5Py3KIeRgM0VgOECo6RisFbMgej6RfwdSmV4mlSX0'
    '01jklkAxhSfJUIdtM1rX9y55V5xDCVwtd8mHbjv04L_GnifOMoLJ2zmpt8AU7KnPTCB-xGpBUIu6C16PHt_Q7329YWfQ'
    'kN0DnsW2pgjt0SnuX_vXFnN0cGuWS7pGuUOF4Vwa4LdkfpFuGXBzmK6Zi0WUhf4p5vrcuyHK_aLiGy2TVuGBEtsuPmLc'
    'ELtvMbRVaYIuM1Sg_lqguOpMjNLg-r2J1Rdg8VU2B37HZUJxRqC21swaF6tjIUdn6W2d3iuM-xReurJ9UB4jBjjAoRCz'
    'me4zYNIAzVU1hmiy-fk6tvOZ-vRmJxPdKRCDQNdJ0N6_f3jFhps67jSezGVxDlDPu3Jqrpi3nr8EAqUOz4CbJTq8J6jU'
    'X7yOe2SRjpk3QjJ5j18AvEUDysXiFPo2ANyjNAdzk3Mw6NaBEbEDZqziqhsixQrQJNr0Vjy6W_We4pi-2RG6CL1VXNe7'
    'vQoN7LBirJstVVpE_hsLFvsBitdF4JrTvXU3fa6YFv6XLe-8sw2N7vSsmbXlcwv-_w1koBK8UIli5Cbi8VpNjs-l_Oyr'
    'bxkaVNkz67xfmL-awksaekBmlRTT5wtuGM8ASeiMtptjlr0peaTs-HZU2_JYlkSq3Ox2xSHby_XxSPu3Q1HQdrvdFzIn'
    'Wq8P68NO5atdcUyTvKsL05PH47coVC2Eq39Ec1PkdEFjriHGqB0FHk_WmWK4M2xMQkvcN9PR5Ca2zv28aoLUx_-a-B81'
    'f_7IQTIUmu9OKtUFWuPqNuBge_PJI1bebP_29rbO9k9fd_HlNr6N8G4KuT70lPePpvAJgd8-Qdlqd9htNocDTkpAYE1U'
    'Gyxgc_fr3XZ73O6Obxl__aH645T8G_tf878='
)
RECIPE = 'llama3_405b'
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
        "64",
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
                num_replicas=64,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
