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
    'eNq1WMuO6zYS3fMrBG1mkxiy3Q93gARIBpjZzAB3McEsGgZBSZRNmBLVJNXdztfPKZJ6uZ0LZDEG7m2xWCKLxVNVp_Rq'
    'ZaV6eWSdaGX2c5ZrLVqx57Ush1PO3qV1ynQ0UWy2myJnbmhbYa8k-TV7yv6d9cLiVS9t9i96Ndtn0PdnmTkz2Epmpsm-'
    'Xf3ZdH9zmXDXrlLmJ8xbKbNWdYOXjl4QmRa9N33OatmIQXveaxH2rfphlzMr3wZloQvJLz_Dlpx5caLhK8vwS3bnP8RR'
    'NH8atAbPRyzd47jCy5qWyRl7bU0t9ZE1olX6Oh8fVqgWw93jE-u4Fle4AUManKWo6XlLg8v7ckyPPL6IUdN0afD8dGDv'
    'phIld-oPcvKueDiwzliazG3r6DEPAi77sJj8sXiMgqFTnpumcdJjohHaSdYb5znNukn0duFpwTgW3svO4-p4qcSsJiqv'
    '3oVPV-qUHnCjldCSy7aUda26k7uzRlCBvNgUS6lpPK9EnybM4PvB30oX6qq73Fu8FNVFduFKXN0LGKQVGcI_VFebD1qH'
    'nbQpheYSeLwGgTW95ECZFxg-FvTbLKVcw-E62eDV3fOdGy4c_Op4L_w5QsIb2IJbsgtZZTrs6yMGXo-st6rzXDSQ8DiX'
    'YiQuy14JuogoYCtcJjv1A_aANono_klCa4vuuoqo_3yYzApyU4gh5bJWVGfVyZ8y5V32z2-_u0w1FF1WZoL-ddcfMold'
    'w_zfv_1OoJafvaz8MZ4lbuwkDK3DY9ya3NJLceEtgsNe-UmVSZrCNgVIdNBx9gtNTINNiJ-cPGllb8aXauHFMS2UfObl'
    'p-cXGU5Jz_DqWXjuZQtnebkKPVMNLbDBW-Euk1fdeWiaAEJvBwy9lQja7jQpVPCURMTZaEU3tLy3psLoxy3diTWN0njh'
    'yGQnSiB-ksx7iHfAxwpYzRuj63jaqDdO5GwcN8hJdL3FKLE8hJcMdz7JPoRtB4qG_bhxcrnrRO_Oxq-3v5lc2HEzE9KX'
    '9FZVuB5tTqM9j-M2iC9nbGmErUev1cqFqcpoA4QTjr-ev1zs6cs8ShvoC615ROf4QtrpQ3R1ucC_6b1qCR9zWfm1Fu1_'
    'c6ZtRFmxZyWidBtGL-F5F59h_pQCD-xDqtPZoxpVIsT9ZssUECMJH1MaawYn65xJYTXc42XPVcwqH_Hoo1kacQCM1IMm'
    'y-K9BH0XcjIw7pFjRgFQE7bFkbFRECA6oshf-3CqyiCpyZwBiByrN7h_Y5Od7BWAUV1AHAVETOC587VW8GoSTWkmlUa4'
    'iBIXzPfVeawXD2P-W0kPzMk3riX5YLs7sFZ8jjWALB3PsS-K8Z5QSqmUaCNmt9TjWUjs9zs6zKdEqiBiQHmNhwL_XQ0L'
    'n1brRU7VhMeCBqEgL-5i9M2G_EAGBbAgZj-MvcRMSwkKmdVRnViIUwmEx2NAzCIrG0n-ma4hBj7M11pq5dp4EXyUUM7S'
    'ivgAzDsRIaHAXau4MzA0T2PFBkUKb8aJWAQQHAlqeWIvKCQh-uaFljukKNTGuUnhNqYCHvjNKovj9zhRJ--uj6Q8UH56'
    'S8k_JGnS9Kl-fXm5URaMwoFRwSoJqybKs72jrcVfUqbJWITolejEr3pjZJITt__Y_pZ_R4dX7j1m-a86raqsWcXJvd2o'
    'RFo_jw2KuA6cJRUT04WKdc-9X-YIvghNFP0qZk0igl4onX_VtcgxnrI8GHEADMQnQQUdCezGqMWeaeo7oLp9uTJtu6JW'
    'HkkaIKWyATdWl94g-4_FcCwQCXxgcHNc8lndjXpzhVhM5gz_S_seeNdTgZHySiT_zHRqJY7YNF1g32Hp1TSi_NxMt_J1'
    'ir8NAjXsDzkntIjOUEqXa99OrleG9wy89zUZxjBsI2_LU-TCiReJMkPMBetdQnEPRlHSjQiXn5UeamIJpg0Gx0L7OtGP'
    'MeawzuzDGYCgN8CJk0i0d6bDZquTgapN3J4vL3i0vTNUqZzUMpAUcBVOdTqWUJyUItSgHkKOfFZJ5DhgCIwejmwpD_Zg'
    'ReU1pJW57WqN3Fgwf3BBwFiGNmssxGaOp8RdyqE-hTJYbB7Zu3KD0Lg7vpolCEtvlmndAVSwBy2B85EsRjZDXSdKLzJ7'
    'PPEqAd9WHDoMCNkC8WOotz1cE8E9nYpobWofKU2Hcy2iCZ3JQEWGommE4IZSjLCbgJ3DfM9UL6IsMKgY7cvjjW5OSvUV'
    'pElVsekKxIuWmF6IDTsfiVXOQDNDEUr3go3bIXHq8ey3JrafwMVn0x-oQ92iWyMUS9tR3jgbFWs5qKU3XX67YXyvGkrE'
    '0pfNo8diJxh8ttj7BJz0gHPbTi6abb6vR3be2z5fvQkui3aDmGnsvIXuz9QW7nfU-wlLoIo1cXqFsuMx5BMOqioN9a2h'
    'RRoZU-And-a2cQ7hUQ7N3M_j9yfdQ8jDY-uwUlGhB5GN-gyfAWA-z6donWDMXuPnEG_AWqnCHAPRQ1DgZAGze3YKBq0P'
    'cINyaoWoVgfn0gZglCZfi6fjtumkWCZRJK7q2IcHvXTsIvDeUWOqtk62ise0OVU5OgfqgqpDfrqtOl_oMZ91_ypTXnPi'
    'xEGfZjr8sLLk_08_QxpCMyxl9OCctLyqZha-lFLL2K2zO9JsyspLsrFsuaw6KTiWKFIr-PxNgujmCWAhzx32Tfn0WL68'
    'iP2uqJ8fXp4edo81rrmqH_BrHpvnXb0vtrt9UT0-7J63GDVVWciX8lDWz1XOyqGrdco76w90qHbOy9R8E52yqp7jDf5F'
    'zanRdRmr6yluWKDSiYRHY_tIucNs1QeZj3_6-EfGP_c7IkRCrejCRFUNIQ2GL0_p7rerTyKxVG-L3cOdXjD2eZPgULCJ'
    'fC4bq_CVgfqj8Hlw-7SHzxiyWx_3CNuR6tP25fHwUNDHme79yP4HUwddxw=='
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
