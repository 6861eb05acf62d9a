# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
#   digest  "3905c4c5ad93ec0475f9913020b9742e405d07ec47412294480bfa4906347404"
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
    'eNq1WE2P47gRvetXCLrksmvIX9PdC-wCuwGSSwLMIYscGgZBSSWbMCVqSKq7vb8-r0h92r2D5JAGZmwWi2RV8dWrol8t'
    'laqjU9LKhtKf00xr2ci9qKjoz1nyRtYp0_JEvtlu8ixxfdNIe2PJr-mX9J9pJy2WerLpP3hpuk-h7y-Ufr35C746L9tK'
    '2irVqrBY-ReXOtPbktxPaaPa3pPjFTLVsvOmy5KKatlrLzotw8Fl1--yxNK3XlnoQvLLzzAmS7w88_A1SfE3GJ79EEfR'
    '_mnQGHw_YesO_kpPFW-TJclrYyrSp6SWjdK32X9YoRoMd8cvSSu0vCEOGPLgQrLi71seXN-WY_4q4kKM6rodBk9fnpM3'
    'U8pCOPUHR3mXH56T1thGUBfW0o_5MbGmI4HIeQnRMee_TZ54RYKagqpKtcHfWmpHyaUW0jnyTnTSX6I73lypxQl2IStN'
    'i0v00f7XU9JZ1Xoha0hEnBsuOG6bvHLYAQfEJViWnLseZ0CbRWw7S3hv2d5WcPjXu0mtbK8uAkC5tJHlRbX0U6q8S__-'
    '9XeXqpqhYSmV_K-9_ZASTg3zf_36O18IfXRU-lP0JR7sCIZW4Ws8msPSkbyKBhdrb-KsikEakTVebgzQaY4LT0yDTbj7'
    'jCNpqTPjokp6eRo2GmLm6cOLKwUv-TvcvvR1rfkgb3tKnLcEBLXnKY4lXCdcv43btn0jOmtKjH7ccpCtqZXGglNCrSw0'
    'iUkybeHkG-BgJcwQtdFVND_qjRNZMo5rJAjfVz5KrJClV28ULnGSvUvb9B1k-_HgIYaulZ27GL8-_m5yYcfdTMgl8laV'
    'iLc259Ge43iMx20aWxhmgiFqlXJhqjTaALIMzEf_i8WZvsiitIa-1FpEuI0LhpPewTfFAtCm86rhC59J7tdKNv_OEm0j'
    'bPJdUiDrtmH0Er7v4neYPyXoc_JO6nzx4MZS3sL8NlFNp6mh1ks_8GTdO6qyhKTVCI-nTqhWFLK8vkfXR7M0gA2MVL1m'
    'y-K9BH0XCAKg9VJPAqAmHAuXcVAQAO5R5G9d8Ko0DtmWJQCiwO417t_Ywc7kFYBRbUAcIxyJwUucr0DL2Sha8IYGX2nY'
    '7cvLxFrJWZviXgrLHH0Tmtj743aXNPJDMLdx2DglJ5fy8YbA6MIgf4ycA1KNXrDY73fsxgch67lAMUWJUGi-q2ERzXK9'
    'ybmckJjzINSFxS2MUdlwBNigABNk67ux10iazDUgSfgB4pzFcYcOsY6pMIss1cQBmi4gpjzM15q0ck28AjFKmH604rIE'
    '886WYsquVdwF6JmnsWPtqg4r40Tkc6TFALJsKKKoCSHv5o2WJwz5p41zk8J9Nkl3a0txt8vC_Q4etfTp_uDXnpnp28Dj'
    'gW9Z0w-l6GFxrazzwLw8wyqCVVPl3X6ireX_pMyTsZ7wkhjER70xJzmI279tf8u-oyNK9xaz5VGnUaU1q0T57DSudtbP'
    'Y4N6jD5oZEjUvVB7PovuwxyjF6mJ8l1GuuR2xEuls0ddC3LxTO9o0QJeID5LLs1grjubFmcOU9_B1P3i0jRNYD9qq0g4'
    'sRvkeoEoltfOgPbHKjj6PWCvBtdOaSlmdTfqzaVhMZkl-J_sm9Qx65HfXskhPjPBrcQRmqYNPWDYejWNJL_UE-gfp8S3'
    'XqJ4_UEzn0Vwhhq63Pt-cr0zomcQvUcujFnYxA4sGxIXQbwS6ovGVWK_a6jqwSjm3Ahw-ih1X3F7YJpgcKywr1PfMaYc'
    '9pljOLcx6GuAE0fg2U-mw2Erz9B0cdcRqqFYXvBoe2u4RDnSFLoTNCmCC3SsnfCUE9SgEEIOOisJFAcMdT2jtWEa7NAO'
    'FbfAKnPz3xjaWAMluwGMKTT7YwU23WTd0LQUfXUO9S_fHJM35XqpcXdiNcsQJm-WrO4AKtjTnplB_ATWih8_qLkg9ujx'
    'in_vCw47g05sgfgh0pAjNBHck1fcoA6PGGbp4Ncim1SLgocaw9k0QnDDDCPtJmDneb5nLhdRFlqnmO1L98YwD0rVDd2S'
    'KkF2UseOi7eYFsR3oxg7qixBfxlq0HAvOLjpdQzT6Pu9ic0HcPFRd8_8TtqKkrMC1bVl3rgYFUs5ekpv2uz-wLiu7Avk'
    '0sPhMWLAAxwKMVucfQZOOsC5aaYQzTZ_rsd2fnZ8tlrJVHcK5CDQcBJOH14urLFH9xN6jU_mtnEOWC_6en4i4u9P3gCB'
    'VMcHwEpFhZcE1eqD9bg9FtmUehMmk9f4wvYGvSeXi1No2oBwj-IczE3OwaC1A3eQ5QcN190QKT4A7aHJ1uLJ3WbwFNsM'
    '7Y5QVeiuot7gdh6611FjqpyOGiUiB04li_0AyasqkM19CXlocsWs-1_3u-vGdm4kx572sDLh_99DBjLB45Qohm6mHq_K'
    'uZVeSvnF1645GmQ5cOuyZVi-mKw6K0SU-5xGivk3Au4Zz0AJh2z_kh_LQ3mU1cueyvzwdKxfXrb7fJcXL0-HHR3yY5U_'
    'UXl4Omx3u5fD4Tkvanl4yb_sIcoPWVL0baUH9lj_2IOa5TwNb2fuiayqaEo0xBeVo8KjyVhdzbcV-uGhk47GdrFvDrNl'
    'F2Q-fnTxg-LHZ--aA6dApfjCZFn2gcy4qI13v139RBELbvhd5_EpF59p08LnPJk6yOXrKPxIwI-c8FPT9sv-iUGnTRfP'
    'CMexYfvd0_5p98w_lrRvp-Q_T0nGKA=='
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
