# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_70b@0.1.0, plan h100x256"
#   digest  "d7eedcdbe8aef7828336ffbfd4ffd4369726292351421fa3835869438220aaaa"
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
    'eNq1WMuO67gR3fMrDK3Tbkl-tDvABMgsBllkn0XDIGipZBOmRF2K6sddzLfPKVIv2z2DZBED97ZZfNSDp04V_eao0C0d'
    'RaNqWv2ySoxRtdrIl_SUiHdynbYNi9N1tk4T0fV1rdwXS_7NC1ebdbZ6SX9dVc7Wq65wyheXv6-y9XblnTaGd3t7paZL'
    'REmV6o2XrVHhyEuWpp_7bSIc_ei1o46F__gFmhLh1ZmHb2KFz2BT8rc4ah15p3SD8RGHYlgoTyXvToR4q21J5igqVWvz'
    'NXsE_brG8JC95qKRRn3BOR6nGF1IlTzYbzG4vk_jg-BvMu7M8oOoqmYY5Yf9Sy7ebaFOstM_KS7Id3vRWFdLanl_Rk_p'
    'TjjbkvQX8gqiXcqfdSq8Jkn1icpSN8HZSpmOxKWSquvId7JV_hKdChGEDreQFbbB9fjoxNtRtE43XqoKEhnnhquLxw5x'
    'WQdbukIZKOUgFd46dhQGGfshK9yFnKS4cnHR58udeAuxdfqsG2VkrT5lh1lDzRhd8cZXDEhBI1u3ycW57eEQTGNZCCwk'
    'IwhuYLXJV3GfrVYE3X71r7BEvNFnS4U_xmjE0zqCq2X4Gs_jwLakrrKm2rovedanQdrZ3hU0giSG-DhHlid-f14XqrjQ'
    's9deNU8xM7rniJ_n0ePnac86hDThK3PUWj6ixiU_hQ3PIT-ekB9PyA_WWSqvjoMdw6V5-vTySsFx_o5IXPqqMmyndz2J'
    'zjsCkJvzdJHBQmDQRVeavpatswVGTxlH3tlKx8ulRp0MyUkyHdGpd-DRKZghK2vK6H1cN04kYhzz3TMW0lHiJICg3wPi'
    'Z9mHcnXf8m2Piocr6BrVdhfrb9XfTS7suJsJKY2E1wWuy9jzwp5BjwcarDtZ5coxbKXuwlRhjUXScGo8BuC0UOrBdkFa'
    'Yb0yRjrVXOekHDR9qKY8LVLKtl7XjISZPv9Zqvo_iTAuwi5Ns504ARRZGL-G73n8vhMzSRzERwC7LEFmX2E-E7puDdXU'
    'eOUHFq76jspEkHIGEfLUSt3IkyquH9H50TCD1ABMyt6wbfFqwvrIeCnYx3ok7ygCdIJiuA1VQYCUiSL_1QbPCtvphhIB'
    'NEqcP7EBvGTgBUoOuGOcI7vCHrD7MFxQlwFpGpiNUjFRpzgbe7qX7rJc3HEL0w0T7MBOowObLbPqeE9F20uLNLJqDko5'
    '-sFiv8nZkU8Cd3CaM1XCQKf43OQUlmT7xyUOIS1uTzkXIyJ3KQ9KOvXnxVWMcVlzHNiigBZk7Yd118jeTFlga_gCBp_F'
    '8YQW4Y4pMYscVcRhmu4gpj7sN4aM7up4CXKUMD0ZzVUS5p0dxYjfLukugNA8jROrrmyxM07EwoLsGJCWDNUcxSmk33zQ'
    'UsOQhsZ23bTgPqlU99UU8u6UhfstPGro2_PBvz0z1I-hHAQ-5pV-qIkPmyvtOg_YqzOsIlg19QHZN6uN-p8W82QsS7wl'
    'BvFx3ZiYHMTstwyl4c_XyKJ7jznzuKbWhbN3SfS4ioum8_PYojEwqh2JEuUz1KDvovswx-hFgqK2F5E1uTnySpvkca0D'
    'v3imeX-xAS8Qn8EA5EBfdzYtdA5Tf4Gp-82FretAgdQEPYh9UwKjXDcQxeLaWrD_WA1HvwfsVSDcKS3lvLwb180VYjGZ'
    'CPxP7l2ZUIfAO8hwr9UQoZnobsQRnLYJTWk4_GYaaX6pJtg_TskfvUIV-0kzpUV4hmq6PPt-8vZkxM8ifo90GPOwjv1Z'
    'EkaJuBJqjMFN4rBrKO7BIqbdiG_6LExfcpdg62BtrLNvU_sxZhzOmUM4dzNobwCTjkCz30wHZTduoXXj5iNURLm839Hw'
    'qjfAY0eGQpOCXkVymY71E25yfloUQ8jBZgWB4QChtmew1syCaPnk6SuQyvwCqS2hdcYitwaKKTw9xips28m6oXc59eU5'
    'FMB0vRPvuuvRbv-cep44ywgmb5ek3gFTsKc5M4H4CaslQS2qLng9enxDv_f1hp1BQ3YPeBbbhiK0J6e4fR1eVczRwa1F'
    'LukG5Q4VhnNphN-a-UW5dcDNYb5mLhZRFvqnmOtL78YoD4vKL7RMughvkdh28RHThth8y7GtSgS6zFCBhmuB4ro3MUqj'
    '6_cm1p-AxWfVHvjJlsmCMwK1tWHWuFgdCzk6S2-b5F5h3Ff0J-TRg_IYMcABDoWYLXSfAZMWaK7rKUSzzd-vYzu_U5_c'
    '7GSiOwZikOg6CdqH50_of7il407jm7kszgHqp74aa0Ue-qXvXwKBUsdnwM0SHd4TVOlPXsc9skymzJsgKd7iQ99btJ9c'
    'LI6hbQPAPUpzMFecg0G3DkyIHTFjC666IVKsAC2iTW7Fk7v14CmOGZodqcvQW8V1g9tpaF_HFVPd7KjWMvLfVLDYD1C8'
    'LgPXHO-tu-ly5bzwv2x4D4vGNk-3BzE_axZN-dKC_38DGagEL1SiGLmZeLwuZseXUn72NbcMDaocmHXZLyxfTeEhDT0g'
    's1rJ-ZcKbhjPAEkA0wusKMoTHRRVL4f8sNnsq-pUldsK_zb715d8n7_mm122zbNKbQ6b3WH_ut0c8jxV-CTi1DelGcjj'
    '5ienfIfOHlUL4Roe0dwUOV3SlGuIMWpHiaeTdaaccma3F6ElHprpaHIbW-dhvmiD1Mc_bfxD7V8-cZALpearU0XRB1bj'
    '4jbCIL_5wSMW3m0GV9Ptty-7-GqbHkabPCT62FDePZjCzwf87mHZS7rbbV7S_fZ1L8BdbVQZtLPOQ7bd5i_p6w6KxRs1'
    '70fxB3oM5oo='
)
RECIPE = 'llama3_70b'
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
        "32",
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
                num_replicas=32,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
