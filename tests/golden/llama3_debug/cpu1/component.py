# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
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
    'eNq1WE2P4zYSvetXCLrsJTFku-12B0iAZIHdyy52LsEeGgZBSZRNmBLVJOVu59fvK5L6sp0BctgGZiwWS2SxWPXqld6N'
    'KGUnjknLG5H-nGZK8YZvWSWK_pQlV2Gs1C1N5Kv1Ks8S2zcNNzeS_Jru03-nHTd41QmT_oteTbcp9N1ZpFb3phSprtNv'
    'N3fW7d9syu2tLaX-CfNGiLSRbe-EpRd4qnjndJcllah5rxzrFPf7ll2_yRIjPnppoAvJLz_Dlixx_ETD9yTFX7Q7-yGM'
    'gvnjoNF4PmLpDsflTlS0TJYk742uhDomNW-kuk3HhxWywXCz2yctU_wGN2BIg7PgFT2vaXC5zsf0yMKLGNV1Gwev-0Ny'
    '1SUvmJV_kJM3-cshabWhycw0lh4zL2Ci84uJH_NdEPStdEzXtRUOEzVXViSdto7RrB1FHxcWFwxj7pxoHa6OFZJParx0'
    '8spdvFIrVY8bLbkSTDSFqCrZnuyTNbwK5Pkqn0t17VjJuzihe9f17l46U5ftZVrcKkm7sU_ZVvqTlJOT0gVXTCDobl5g'
    'dCcYQslxDHc5_a3mUqbgVRU3cvLpIc414xbOs6zj7hzu3emLaHEVZiYrdYt9Xbjo92PSGdk6xmtIWJiLiRCWTd4pPpE2'
    'CCB_Y8mp67EHtEk0SGht3t4WafOfVqSGt5eQJ9KmDS_PshU_pdLZ9J_ffreprCmDjEg5_WtvP6QCm_r5v3_7nQJXfHWi'
    'dMdwlLCvFbCz8o9hZ_JKJ_iFNUgAc2MnWURpTM2YBME_x8ktNDEOVj5HMnKkEZ0eXqq448e4UHSZE1-OXYQ_JD3DqWfu'
    'mBMNfOXEIr102TeIC9Zwe5li4tzXtQ80Z3oMnRFIzPY0KpTwlEBWmWBF2zesM7rE6Mc1XYnRtVR44ZiIlheI6lEy7cGv'
    'iB7DYTWrtarCaYPeMJElw7gG7tBd5oPEMJ9C4YJH2Sc3TU8Rvx02ji63Le_sWbvl9neTMzvuZjxECWdkietR-jTYsxu2'
    'QW5ZbQrNTTV4rZLWT5VaaQQ4hfHj-YvZnq7IgrSGPleKUXBOCRR3-uRtVczCX3dONhQfU-n4teLNf7NEmRBl-TYpkKRr'
    'P3rzz5vwDPNHmDskn0Kezg4Vp-Q-7VfrRCJiBMXHCFV1b0WVJYIbBfc40TEJaOPl5TMcfTBLIQ8QI1WvyLJwL17fetxF'
    'jDtAzCBA1PhtcWRs5AXIjiByt86fqtQALpElCESG1WvcvzbRzuQdASNbH3GUEAGkM-sqJeHVKBpRJpY_uIhwC-a78jzU'
    'hMMAf3dSKz6YEuSD9eaQNPxrwHmydDjHNs-He0K5pHKhNJ_cUg1nIbHbbugwXwJQQcWfYI35Iv5dDQOflstFTuUYjzkN'
    'fNGd3cXgmxX5gQzywYKc_dTmEoCWAArAaqlGzMSxzMHjISEmkRG1IP-M1xASH-YrJZS0TbgINkgIs5Skmg_zTkQ6KHGX'
    'KvaMGJqmsWJtqw5vholQA5AcMdSyyFBQR3z2TQvNd4hZqLS1o8J9Tvl4YHerzI7f4USteLo-QLknfPqI4O9BmjRdLF8P'
    'L9fSgDVYsCZYJWDVSGvWT7QV_0vKNBmKEL0SnPioN2QmOXH9j_Vv2Xd0WGmvAeUfdRpZGr3Ik2e7UYk0bhpr1HDleUks'
    'Jrr1FeuZex_mKHyRmqj5ZUBNInuOS5U96hpgjCOUB-v1AQPxiVNBB4DdGTXbM059J6juXy5103gQFG0VcAcgjSClsgE3'
    'lpdOA_2HYjgUiBh8YGlTXrJJ3Q56U4WYTWYJ_hfm6mnXPsdIOsmjfyY2tRCH2NStZ9h-6cU0svxcj7fyOMU-eo4a9oeY'
    'AC1Epy-l87XvJ5crw3sa3nsEw5CGTaBtWcxcOPEiUGaIuWC9iy_u3igC3RDh4qtUfUUsQTfe4FBo30f6MeQc1pl8OAUg'
    '6A3ixAoA7ZNpv9niZKBqI39n8wsebG81VSorlPAkBVyFUZ0OJRQnpQzVqIeQA89KAYxDDIG1w5EN4WAHVlTcPKxMrVWj'
    'xcqA3YMLIoyFb6WGQqynfIrcpeirky-D-WqXXKXtucLdscUshbBweg7rFkEFe9ARWBfIYmAz1Fmi9ALZw4kXAHxfcegw'
    'IGSziB9SvengmhDc46mI1sYWkWDan2uWTWhMeioylE1DCK4IYrhZ-dg5TPdM9SLIPIMK2T4_3uDmqFTdQJpkGRorT7xo'
    'ifGF0JSzgVhlCWimL0LxXrBx00dOPZz93sTmC3HxVXcH6kLX6MgoioVpCTfOWoZaDmrpdJvdbxjeK_sCufSwefBY6Pa8'
    'z2Z7nxAnHcK5aUYXTTY_1yM7n22fLd4El0W74dsm311z1Z2pK9xuqPXjhoIq1MTxFULHo8cTBqoqNPWmvkUaGJPnJ0_m'
    '1mEO6VH09dSz4-9PugePw0PrsFCRvgcRtfzyrT7MZ9mYrWMYJ-_hk4fTYK1UYY6e6CEpcDIfs9vk5A1aHuAuyqkVolrt'
    'nUsbgFHqbCkej9vEk2KZSJGYrEIb7vXisXPPeweNsdpa0UgWYHOscnQO1AVZeXy6rzoP9JhNun-VKS85ceSg-4kOvyws'
    '-f_TTw9DaIaFCB6cQMvJcmLhcym1jO0S3QGzEZXnZGPechl5knAsUaSGs-mTBNHNE4KFPHfY1sV-V7y98e0mr15f3vYv'
    'm12Fay6rF_zVu_p1U23z9Wabl7uXzesao7oscvFWHIrqtcySom8rFXFn9hFuDaajeutEbL6JThlZTfkG_6LmVOi6tFHV'
    'FCueSkcSPgg8sw5Mq_M_Lvx04UeEn-cdETKhknRhvCx7D4P-61K8-_Xik0go1et88_KkFwx93ig45MlIPueNlf_KQP2R'
    '_wS43m_hswTo1oU9_Hakul-_7Q4vOX2caa_H5H9gqlPQ'
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
