# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu1"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s titan_slurm component.py:train           # submitted to SLURM
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
    'eNq1WE2P4zYSvetXCLrsJTFku93jDpAAyQK7l13sXII9NBoEJVE2YVLUkFR3O79-X5HUl-0MkMM2MGOxSJFVxVdVr_Rq'
    'RS178ZZ1XIv857xQimu-Z42ohlORvQvrpOlootxsN2WRuUFrbq8k-TV_zv-d99ziVS9s_i96Nd_nWO_PIndmsLXITZt_'
    'vfqz6f7mcu6uXS3NT5i3QuRadoMXjl7gueK9N32RNaLlg_KsVzycW_fDrsis-DZIi7WQ_PIzdCkyz080fM1y_CW9ix_i'
    'KKo_DbTB8xu27mEu96KhbYose9WmEeota7mW6jqbDy2kxnB3eM46pvgVbsCQBmfBG3re0uDyvhzTI4svYtS2XRp8eT5m'
    '76bmFXPyD3Lyrnw6Zp2xNFlY7eixCAIm-rCZ-LE8RMHQSc9M2zrhMdFy5UTWG-cZzbpJ9O3C0oZxzL0XncfVsUryeRmv'
    'vXznPl2pk2rAjdZcCSZ0JZpGdif3YI-wBPJyUy6lpvWs5n2aMIPvB38rXSyX3eXR5hWvL6ILV-KankMhJUkR9iG7xnzQ'
    'PtlJmYorJoDHaxBY0wsGlHmO4aGkv81SyhQcrpIOXj6079wy7uBXx3ruzxES3kAX3JJdyGrT4VwfMfD6lvVWdp7xFhIW'
    '51KMxG2zV4IuIgrYCpeZnfoBZ2A1iUYJ7c276yqi_tOJ3PLuEkNIulzz-iw78VMuvcv_-fV3l8uWgsuKnNO_7vpDLnBo'
    'mP_7198J0-KzF7V_i6bEc52Ank14jCeTV3rBL0wjNuyVnWSVpClqU3xE_7zNbqGJabAJ4VOQI63ozfhSwz1_Sxsll3nx'
    '6dlFBCPpGU49c8-80PCVF6vIM_WgAQ2mubtMTnXnoW0DBr0dMPRWIGa707SghqcEAs5GLbpBs96aGqMft3Ql1rRS4YW3'
    'THS8AuAnyXwGfwd6LIfWrDWqidbGdeNEkY3jFimJ7rIcJZaF6IoXPMk-uNUDBcN-PDi53HW8d2fj18ffTC70uJkJ2Ut4'
    'K2tcjzKnUZ_DeAzCyxlbGW6b0WuNdGGqNsoA4ATje_urxZm-KqK0xXquFCNwzgGUTvrgXVMt4G96LzXhY64qvzZc_7fI'
    'lI0oK_dZhSDdhtFLeN7FZ6g_ZcBj9iHk6exRjGoewn6zzSQQIwgfUxZrByeaIhPcKrjHi57JmFQ-oumjWgpxAIw0gyLN'
    '4r2E9S6kZGDcI8WMAqAmHAuTcVAQIDqiyF_7YFVtkNNEkQGIDLu3uH9jk57ZKwAju4A4CoiYvwvnGyXh1SSaskyqjHAR'
    '5S2o7-vzWC6OY_q7kTrxjSlBPtjujpnmn2MJIE1HO_ZlOd4TKilVEmX47JZmtIXEfr8jYz4FUgXxAkprLNT3766w8Gm9'
    '3uRUT3gsaRDq8eIuRt9syA-kUAALYvbD2EtMtJSgkFgdlYmFOFVAeDwGxCyyohXkn-kaYuBDfaWEkk7Hi2CjhHKWkkQH'
    'oN6J-AgF7nqJOwND8zR2bFGj8GaciDUAwZGgViTygjoSom_eaHlCikJlnJsW3MZUwAO72WVhfg-LOvFwfyTlgfLTt5T8'
    'Q5KmlT6Vr7uXW2lBKBwIFbQS0GpiPNsHqxX_S4tpMhYheiU68X7dGJnkxO0_tr8V31nDavces_z9Gi1ra1Zx8ug0KpHW'
    'z2ODGq4CZUnFxHShYj1y790cwRehiZpfx6xJPNBzqYr7tRY5xlOWByEOgIH4xKmgI4HdKLU4M019B1S3L9dG6xWz8kjS'
    'ACmVDbixvvQG2X8shmOBSOADgZvjks3L3bhurhCLySLD_8K-B9r1XGIkveTJPzObWokjNk0XyHfYejWNKD-3063cT7Fv'
    'A0cN-0PMCS2iM5TS5d63k-ud4T0D790nwxiGOtK2IkUunHgRKDPEXLDfJRT3oBQl3Yhw8VmroSGWYHRQOBba14l-jDGH'
    'fWYfzgAEvQFOnECifTAdDltZBqo2UXu2vOBR985QpXJCiUBSwFUY1elYQmEpRahBPYQc-awWyHHAEAg9HKkpD_ZgRdU1'
    'pJW569JGbCyIP7ggYCxClzUWYjPHU-Iu1dCcQhksN4fsXbqBK9wdW80ShIU3y7TuACrog47A-UgWI5uhphOlF5k9WrxK'
    'wLcVh4wBIVsgfgx13cM1EdyTVURrU_dIaTrYtYgmNCYDFRmKphGCG0ox3G4Cdo7zPVO9iLLAoGK0L80b3ZwWNVeQJlnH'
    'nisQL9pieiH262wkVkUGmhmKULoXHKyHxKlH229V1J_AxWfbH6lB3aJZIxQL21HeOBsZazmopTddcXtgfK8eKsTS3eHR'
    'Y7ERDD5bnH0CTnrAWevJRbPOj9eRno-OL1Zvgsui3QhtU2i8uerP1BXud9T6cUugijVxeoWy41vIJwxUVRhqW0OLNDKm'
    'wE8ezG3jHMKjGtq5ncffn3QPIQ-PrcNqiQw9iGjlZ_gKAPVZMUXrBOPsNX4N8QaslSrMWyB6CApYFjC7z05BobUBNyin'
    'VohqdXAuHQBGaYq1eDJXJ0uxTaJITDaxDQ_rktll4L3jiqnaOqEli2lzqnJkB-qCbEJ-uq06d_SYzWv_KlNec-LEQZ9n'
    'Ovy00uT_Tz9DGkIzLET04Jy0vKxnFr6UUsvYrbM70mzKykuysWy5rDxJOJYokuZs_iRBdPMEsJDnjvu2ej5ULy98vyub'
    'L08vz0-7Q4Nrrpsn_LWH9suu2Zfb3b6sD0-7L1uM2roqxUt1rJovdZFVQ9eolHcW3-e2YDpqcF6k5pvolJXNHG_wL2pO'
    'g67LWNXMWAlUOpHwURCYdWRaffjx8aePPyL-PO6IEAmNpAvjdT2ENBg-PKW7364-icRSvS13Tw96wdjnTYJjmU3kc9lY'
    'ha8M1B-Fr4Pb5z18liG79fGMcBwtfd6-HI5PJX2c6d7JIU56QajwIRpfR9GGbIc2mEtfiIq7j0cl_DJEhN59vAkEDGmg'
    'Q5Ef4y7s69Rg9XQK0VLkNwK9HToK-5khSB1ZOt1w-GwbvoGEp2k3bfCWm7ZD5rFiMaZQUNS43xXbkRVVAPH4eSwhHBHl'
    'zjrZQg0spbkaMX5h7iI-FuntsImZpwKj_ZCNPy8c8D-3DtBE'
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
