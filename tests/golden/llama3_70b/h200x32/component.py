# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_70b@0.1.0, plan h200x32"
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
    'eNq1WMuO67gR3fMrDK3Tbkl-tDvABEgWg1lkn0XDIGipZBOmRF2K6sddzLfPKVIv253BZBED97ZZfNSDp04V_eao0C0d'
    'RaNqWv2ySoxRtdrIl_SUiHdynbYNi9N1tk4T0fV1rdwXS_7NC1ebdbZ6Sf-1qpytV13hlC8uf19l6-3KO20M7_b2Sk2X'
    'iJIq1RsvW6PCkZcsTT_320Q4-tFrRx0L__ELNCXCqzMP38QKn8Gm5G9x1DryTukG4yMOxbBQnkrenQjxVtuSzFFUqtbm'
    'a_YI-nWN4SF7zUUjjfqCczxOMbqQKnmw32JwfZ_GB8HfZNyZ5QdRVc0wyg_7l1y820KdZKd_UlyQ7_aisa6W1PL-jJ7S'
    'nXC2Jekv5BVEu5Q_61R4TZLqE5WlboKzlTIdiUslVdeR72Sr_CU6FSIIHW4hK2yD6_HRibejaJ1uvFQVJDLODVcXjx3i'
    'sg62dIUyUMpBKrx17CgMMvZDVrgLOUlx5eKiz5c78RZi6_RZN8rIWn3KDrOGmjG64o2vGJCCRrZuK85tD39gGYtCXCEJ'
    'GMjTW1T9anu3ihtttSIo96vfwiLxRp8tFf4YwxHP6wi-luFrPJEj25K6yppq677kWZ8GaYeTCxpREmN8nEPLE78_rwtV'
    'XOjZa6-ap5ga3XME0PPo8vO0Zx1imvCdOWotH1Hjlp_ChueQIE9IkCckCOsslVfHwY7h1jx9enml4Dp_RywufVUZttO7'
    'nkTnHQHJzXm6yWAhQOiiK01fy9bZAqOnjEPvbKXj7VKjTobkJJmO6NQ7AOkUzJCVNWX0Pq4bJxIxjvnyGQzpKHESSNDv'
    'AfKz7EO5um8h24yKhyvoGtV2F-tv1d9NLuy4mwk5jYzXBa7L2PPCnkGPBxqsO1nlyjFspe7CVGGNRdZwbjwG4LRQ6kF3'
    'QVphvTJGOtVc56wcNH2opjwtcsq2XteMhJk__1mq-j-JMC7CLk2znTgBFFkYv4bvefy-EzNLHMRHALsswWZfYT4Tum4N'
    '1dR45QcarvqOykSQcgYR8tRK3ciTKq4f0fnRMIPUAEzK3rBt8WrC-kh5KejHemTvKAJ0gmK4DVVBgJSJIv_VBs8K2-mG'
    'EgE0Spw_0QG8ZOAFTg64Y5wju8Ie0PswXHCXAWsamI1aMXGnOBt7upfuslzckQvzDTPsQE-jA5st0-p4T0XbS4s0smoO'
    'Sjn6wWK_ydmRTwJ3cJozV8JAp_jc5BSWZPvHJQ4hLW5PORcjIncpD0o69efFVYxxWXMc2KKAFmTth3XXSN9MWaBr-AIK'
    'n8XxhBbhjikxixxVxGGa7iCmPuw3hozu6ngJcpQwPRnNZRLmnR3FiN8u6S6A0DyNE6uubLEzTsTKguwYkJYM5RzVKaTf'
    'fNBSw5CGxnbdtOA-qVT31RTy7pSF-y08aujb88G_PTPUj6EcBD7mlX4oig-bK-06D9irM6wiWDU1Atk3q436nxbzZCxL'
    'vCUG8XHdmJgcxOzXDKXhv6-RRfcec-ZxTa0LZ--S6HEVF03n57FFZ2BUOxIlymeoQd9F92GO0YsERXEvImtyd-SVNsnj'
    'Wgd-8Uzz_mIDXiA-gwHIgb7ubFroHKb-BFP3mwtb14ECqQl6EPumBEa5biCKxbW1YP-xGo5-D9irQLhTWsp5eTeumyvE'
    'YjIR-J_cuzKhDoF3kOFeqyFCM9HdiCM4bRO60nD4zTTS_FJNsH-ckj96hSr2k2ZKi_AM1XR59v3k7cmIn0X8Hukw5mEd'
    'O7QkjBJxJdQYg5vEYddQ3INFTLsR3_RZmL7kLsHWwdpYZ9-m9mPMOJwzh3DuZtDeACYdgWa_mQ7KbtxC68bNR6iIcnm_'
    'o-FVb4DHjgyFJgW9iuQyHesn3OT8tCiGkIPNCgLDAUJtz2CtmQXR8snTVyCV-QlSW0LvjEVuDRRTeHuMVdi2k3VD73Lq'
    'y3MogOl6J95116Pf_jn1PHGWEUzeLkm9A6ZgT3NmAvETVkuCWlRd8Hr0-IZ-7-sNO4OG7B7wLLYNRWhPTnH7OjyrmKOD'
    'W4tc0g3KHSoM59IIvzXzi3LrgJvDfM1cLKIs9E8x15fejVEeFpVfaJl0ER4jse3iI6YNsfmWY1uVCHSZoQIN1wLFdW9i'
    'lEbX702sPwGLz6o98JstkwVnBGprw6xxsToWcnSW3jbJvcK4r-hPyKMH5TFigAMcCjFb6D4DJi3QXNdTiGabv1_Hdn6n'
    'PrnZyUR3DMQg0XUStA_Pn9D_cEvHncY3c1mcA9RPfTXWijz0S9-_BAKljs-AmyU6vCeo0p-8jntkmUyZN0FSvMWXvrdo'
    'P7lYHEPbBoB7lOZgrjgHg24dmBA7YsYWXHVDpFgBWkSb3Iond-vBUxwzNDtSl6G3iusGt9PQvo4rprrZUa1l5L-pYLEf'
    'oHhdBq453lt30-XKeeFfbHgPi8Y2T7cHMT9rFk350oL_fwMZqAQvVKIYuZl4vC5mx5dSfvY1twwNqhyYddkvLF9N4SEN'
    'PSCzWsn5pwpuGM8ASQDTC6woyhMdFFUvh_yw2eyr6lSV2wr_NvvXl3yfv-abXbbNs0ptDpvdYf-63RzyPFX4JOLUN6UZ'
    'yGP6zQmw_-Rih6KFaA1vaO6JnC5pSjWEGKWjxMvJOlOOV7bJRWiIh1Y6GtzGxjlOF20Q-vinjX-o_dP3DRKh1Hxvqij6'
    'QGlc2UYMZPubnzti2d1mcDTdfvuui2-26Vm0yUOaj-3k3XMp_HjArx6WvaS73eYl3W9f9wLM1UaVQTvrPGTbbf6Svu6g'
    'WLxR834UfwD1Eecg'
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
        "4",
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
                num_replicas=4,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
