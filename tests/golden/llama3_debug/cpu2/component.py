# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
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
    'eNq1WMuO6zYS3esrBG1mkxiy3Q93gARIBpjZzAB3McEsGgZBUZRNmBLVJNXdztfPKZJ6uZ0LZDEG7m2xWCKLxapTp_Rq'
    'pVC9PGYdb2X-c15ozVu-Z7WshlORvUvrlOlootxsN2WRuaFtub2S5Nf8Kf933nOLV720-b_o1XyfQ9-fZe7MYIXMTZN_'
    'u_qz6f7mcu6unVDmJ8xbKfNWdYOXjl7guea9N32R1bLhg_as1zzsK_phV2RWvg3KQheSX36GLUXm-YmGr1mOX7K7-CGO'
    'ovnToDV4PmLpHsflXta0TJFlr62ppT5mDW-Vvs7HhxWqxXD3-JR1TPMr3IAhDc6S1_S8pcHlfTmmRxZfxKhpujR4fjpk'
    '70bwijn1Bzl5Vz4css5Ymixs6-ixCAIm-7CY_LF8jIKhU56ZpnHSY6Lh2smsN84zmnWT6O3C0oJxzL2XncfVsUrxWY0L'
    'r965T1fqlB5wo4JryWRbybpW3cndWSOoQF5uyqXUNJ4J3qcJM_h-8LfShbrqLvPiTivajX2orjYfpJydtKm4ZhJBdw0C'
    'a3rJEEqeY_hY0m-zlDINr-q0kVd3D3FuGHdwnmM99-d4795cZIersAuZMB329fGiX49Zb1XnGW8gYXEuJUJcNnul-ETa'
    'IIDCjWWnfsAe0CYRXTJJaG3eXVdp858Pk1tOvgiJolzecnFWnfwpV97l__z2u8tVQylkZc7pX3f9IZfYNcz__dvvFLny'
    's5fCH-NZ4sZOwtA6PMatyS295BfWIgPslZ1UlaQpN1MWRAcdZ7_QxDTYhCQpyJNW9mZ8qeaeH9NCyWdefnp2keGU9Ayv'
    'nrlnXrZwlper_DJiaBEYrOXuMgfFeWiaEGneDhh6K5GZ3WlSEPCURFrZaEU3tKy3RmD045buxJpGabxwzGTHK4T1JJn3'
    '4O8IH8thNWuMruNpo944UWTjuAHw0PWWo8SykEMy3Pkk--C2HSjk9-PGyeWu4707G7_e_mZyYcfNTMAo6a0SuB5tTqM9'
    'j-M2SC5nbGW4rUev1cqFKWG0QYRTHH89f7XY01dFlDbQ51qzGJ3jC2mnD97V1SL-Te9VS_Ex145fa97-t8i0jVFW7rMK'
    'WboNo5fwvIvPMH_CuUP2IdXp7FFyBA95v9lmChEjKT4mrGoGJ-sik9xquMfLnilgGxeXj3j00SyNPECM1IMmy-K9BH0X'
    'gBcx7oExowBRE7bFkbFRECA7oshf-3AqYYBcssgQiAyrN7h_Y5Od2SsCRnUh4ighIkoXztdawatJNMFMqn9wEQEXzPfi'
    'PBaFhxH_VtJD5uQb05J8sN0dspZ_jkBPlo7n2JfleE-ol1QvtOGzW-rxLCT2-x0d5lMCKqj6E66xUMW_q2HhU7Fe5CSm'
    'eCxpEKru4i5G32zID2RQCBbk7Iexl4i0BFBAVkdFYiFOdQ4ejwkxi6xsJPlnuoaY-DBfa6mVa-NFsFFCmKUVFX2YdyLW'
    'QYm7VnFnxNA8jRUbV_d4M07EIoDkSKFWJIqCQhKyb15ouUPKQm2cmxRucyrEA7tZZXH8Hifq5N31AcoD4dNbAv8A0qTp'
    'U_368nKjLGiDA22CVRJWTbxme0db87-kTJOxCNEr0Ylf9cbMJCdu_7H9rfiODhPuPaL8V51WCWtWeXJvNyqR1s9jgyKu'
    'AzFJxcR0oWLdc--XOQpfpCaKvoioSWzPc6WLr7oWGOMJ5UF7Q8BAfOJU0AFgN0Yt9kxT3wmq25eFadsAgrKrI-4ApBGk'
    'VDbgRnHpDdB_LIZjgUjBB5o25yWb1d2oN1eIxWSR4X9p3wPveioxUl7x5J-ZTq3EMTZNFyh2WHo1jSw_N9OtfJ1ibwNH'
    'DftDzoAWozOU0uXat5PrleE9A-99BcOYhm3kbUXKXDjxIlFmiLlgvUso7sEoAt0Y4fJT6KEmlmDaYHAstK8T_RhzDuvM'
    'PpwDEPQGceIkgPbOdNhsdTJQtYnAs-UFj7Z3hiqVk1oGkgKuwqhOxxKKk1KGGtRDyIFnQgLjEEOg7XBkSzjYgxVV1wAr'
    'c2_VGrmxoPfggghjGXqpsRCbOZ8Sd6mG-hTKYLl5zN6VG7jG3bHVLIWw9GYJ6w5BBXvQEjgfyWJkM9RaovQC2eOJVwB8'
    'W3HoMCBki4gfU73t4ZoY3NOpiNamHpFgOpxrkU3oTAYqMpRNYwhuCGK43YTYOcz3TPUiygKDitm-PN7o5qRUX0GalIid'
    'VSBetMT0QuzK2Uisigw0MxShdC_YuB0Spx7Pfmti-4m4-Gz6A7WhW7RkFMXSdoQbZ6NiLQe19KYrbjeM74mhQi592Tx6'
    'LLZ7wWeLvU-Ikx7h3LaTi2ab7-uRnfe2L1Zvgsui3SBmGttrrvsztYX7HfV-3FJQxZo4vULoeAx4wkBVpaHmNLRII2MK'
    '_OTO3DbOIT2qoZmbdvz-pHsIODy2DisVFXoQ2ajP0OvDfFZM2TqFcfYav3l4A9ZKFeYYiB6SAicLMbvPTsGg9QFuopxa'
    'IarVwbm0ARilKdbi6bhtOimWSRSJqTr24UEvHbsMvHfUmKqtk61iETanKkfnQF1QdcCn26rzhR6zWfevMuU1J04c9Gmm'
    'ww8rS_7_9DPAEJphKaMHZ9DySswsfCmllrFboztgNqHykmwsWy6rTgqOJYrUcjZ_kyC6eUKwkOcO-6Z6eqxeXvh-V9bP'
    'Dy9PD7vHGtcs6gf8msfmeVfvy-1uX4rHh93zFqNGVKV8qQ5V_SyKrBq6WifcWX-FQ7VzXqbmm-iUVfWcb_Avak6NrstY'
    'XU95kwUqnUh4NLaPlDvMij7IfPzTxz8y_rnfESETakUXxoUYAgyGz0vp7rerTyKxVG_L3cOdXjD2eZPgUGYT-Vw2VuEr'
    'A_VH4Rvg9mkPn2VAtz7uEbYj1afty-PhoaSPM937MfsfC5pUVw=='
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
