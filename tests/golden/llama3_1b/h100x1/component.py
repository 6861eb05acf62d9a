# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_1b@0.1.0, plan h100x1"
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
    'eNq1WMuO67gR3fMrDK2n3ZIffd0BJkBmgEEWAWaZRcMgKIqyCVOiLkV1t-9ivj2nSFGS7Z5BskgD99osPurBU6eKfnNK'
    '6k4dWSsatfp5lRkjGrHlRZmxd-V6bVuS5utinWesH5pGuCtJ_kXrVtv1ZlX8sqqdbVa9dMLL8wo7ft39bbXZr0ptDB3g'
    '7UW1fcYqVYvBeN4ZEU49F3n-eciYU98H7VRPsr__DF0Z8-JEwze2wt9oVPZTHHVOeSd0i_ERZ2IohVcV7c4Ye2tspcyR'
    '1aLR5jq7BPW6wXCT7w6s5UZc4R7GxQtGZyUqGmw3GFzep_GB0Tced77sWF234-BQvG7Yu5Wi5L3-QaErNofNHodZ13DV'
    'haPVU75nznaK-7PyAqJ9Tn_rnHmtuGpKVVW6Da56Nyh2rrnoe-V73gl_jh6F6EGFW8ikbXE7PnrwdmSd063nooaEx7nx'
    '5mphepWCsg6m9FIY6KQISW9d8BoGGfvBa9wEn8S4cnbWp_OdeAexdfqkW2F4Iz55j1mj2hQU9kb3C0RBZYgCO3UDHIJp'
    'JEqSBIAbVP3eqtU_IfwJmEFErit_DuGxg6erVZ-dkv4YQxKP7BX8rcLXeCgFt1PiwhvVWHflJ12O0t4OTqoEkxjn4xxe'
    'mvjjeS2FPKtnr71on2Jy9M8RQc_J6-dpzzrENaN7c6qzdESDi34KG55DjjwhR56KX0hlJbw4jmaMF-fVp-cXFZyn74jG'
    'eahroxIieu8UkNyepssMBgKFLnrSDg3vnJUYPRUUfGdrHS9YtaI0ik-S6YhevAOSTsAMXltTRefjujSRsTSm66dby5PE'
    'cWBBv8ernGQfwjVDR3BKiscb6FvR9Wfrb9XfTS7suJsJOY2M1xK3ZexpYc-oxwMM1pVWuCqFrdJ9mJLWWCQOpcdjAMqF'
    'Ug_CC9Ia64Ux3In20k8bRk0foq3KRVrZzuuGgDAT6D8q0fw7Y8ZF1OX5lpWARBGGr-H7Jn7fs5kmDuxDIdU8r0Bm1zBf'
    'MN10RjWq9cKPPFwPvaoypoQzCJBXHdctL4W8fETfk10GiQGUVIMh0-LNhPWB5HLQj_XI3iQBcIJeOA1NQYB8iSJ_7YJf'
    '0va6VRkDFjmOn-gAPhLsAiMH1BHKkVphzy5LwwV5GbCmgdUoFhN3spOx5b10X2zYHbkQ3xDDjvSUHHhBnNMdyW7gFilk'
    'xRyRKnlBYr_dkBufCrRBGU5UCfOcoFOzMiwpXh6XOMRT3p5ykgmN-5wGlSqH0-IeUlTWFAWyKCAFGfth3SWyN7EV2Bqe'
    'gMFncTyhQ7BjOswip2pFQZpuIKY97DdGGd038Qp4khAzGU0lEuadnIrxvl3Sn4GfeRon1n3VYWeciIUFmTHCLBsrOYpT'
    'SL35oKWGMQWN7ftpwX1Cif7aSn53ysL9Dh616svzQb0DsdP3sRIEKqaVfqyJD5tr7XoP0IsTrFKwam4CvlhtxP-0mCZj'
    'RaItMYiP61JWUhCL36gs_PkaLvv3mDGPaxotnb1LocdVVC-dn8cWjYERXSJJVM5Qf76K7sMcoRfpidIuI2NSZ-SFNtnj'
    'Wgd28UTx_mwDXiA-If-VA3fd2bTQOU79BabuN0vbNIH_VBv0IPZtBYxSzUAU5aWzYP5UCZPfI_ZqsO2UlnxePnVjc3VY'
    'TGYM_yv3LkyoQeAdZLjXYozQTHM34ghO24aONBx-M400P9cT7B-n-PdBoIL9UDOlRXiGSro8-37y9mTEzyJ-j3QY87CJ'
    '_VkWRhm7KBQYg5vEYZdQ2INFRLoR3-pTmqGiDsE2wdpYY9-m1iNlHM6ZQzh3MmhtAJNegWa_mA7KbtxC10aNRyiHfHm_'
    'yfBeGRVaExTz9BXNCqc6HSuo7TIiXEgQH0mcJhV4DkDqBoJsQ1yIno-X10At8yOksQoNNBa5NbCswusjFWLbTTaO3Us5'
    'VKdQBPP1nr3rfkDT_WPqeuIs4Vh5u6T2HsiCPe2JaMRPiK0U1KLygt2j3zckfF91yBm0ZPewJ7FtVQT45BT1r-PDipg6'
    'uLXIKN2i6KHOUEYlEK6JZYRbB_Qc5sumkhFloYOKGb_0LkV5XFRd0TRpGV4ksfGiI6YNsfvmqbHKGPrMUIfGa4HiZjAx'
    'Ssn1exObT4Djs-4O9GwruKS8QIVtiTvOVsdyjt7S2za7Vxj3yaFENj0ojxEDHOBQiNlC9wkw6YDppplCNNv89Tqy8yv1'
    '2c1OortjoAeOvlNB-_j-mdo66je-mCviHKBeDnWqGBt6iv7JWyAQa3oI3CzR4UWhav1J66hL5tmUfxMk2Vt86nuLDpRK'
    'xjG0bgC4R4EO5rJTMOjWgQmxCTNWUu0NkSIFaBNtdiue3G1GT3HM2PJwXYUOK64b3c5DC5tWTNWzV43mkQWnskV-gOh1'
    'FRjneG_dTafL54X_ZdN7WDS34VeJ-WGzaMyXFvz_28hAJXijKhUjNxOP13J2fCmlh197y9OgypFZl13D8t0UXtLQAzJr'
    'BJ9_r6C28QSQUNB2h81u8_K62WyEKOvqsBXyVWxFmb_i367YlLuy3IrXXS7EvtruJJbWL3K3y79t99tXgQ6-HNrKjORx'
    '86NTgabFDAjW-IimxsjpSk2ZhgijdFR4O1lnqhkloSke2-kkCD1ybJq68OHjRxc_VPeXDxxkQaXp0oSUQ-AzKm4JALRi'
    '-WtHLL274nW3zXdfPezio23a_o0yPPWTN6-l8LsBPXpC1my2-0OB0OUMjNVFZUFvwOPL9qUoisM3-nFHte9H9h9dv-cQ'
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
    gpu: int = 1,
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
