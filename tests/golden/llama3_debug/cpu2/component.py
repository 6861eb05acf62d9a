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
    'eNq1WE2P4zYSvfNXCLrsJWnIdrvHHSABkgV2L7vAHDbYQ8MgKImyCVOihqS62_n1-4qkvmxngBzWwEybxSJZVXz1qug3'
    'KyvVyyPrRCuzn7Nca9GKHa9lOZxy9i6tU6ajieJp81TkzA1tK-yVJL9mL9m_s15YLPXSZv-ipdkug74_y8yZwVYyM032'
    '9erPpvuby4S7dpUyP2HeSpm1qhu8dLRAZFr03vQ5q2UjBu15r0U4t-qHbc6s_DYoC11IfvkZtuTMixMN31iGT7I7_yGO'
    'ovnToDX4fsTWPdwVXta0Tc7YW2tqqY-sEa3S19l9WKFaDLf7F9ZxLa4IA4Y0OEtR0_cNDS7vyzF95XEhRk3TpcGXlwN7'
    'N5UouVN_UJC3xfOBdca2XPZhrfyx2DNreskROC8g2hf0eSqYV5LLtpR1rbrgbyO0k-zccOGc9I73wp-jO95cZIcT7EJW'
    'mQ536KP9b0fWW9V5LhpIeJxL9xu3ZW8UdqABcQmWsVM_4Axok4hsJwntLbrrCg3_-TCZFd3FxftXLmtFdVad_ClT3mX_'
    '_Pq7y1RDyLAyE_Svu_6QSZwa5v_-9Xe6EPnZy8ofoy_xYCdhaB2-xqMpLL0UF97iYu2Vn1SZpAly6XJjgI5zXGhiGjyF'
    'u88pklb2ZlxUCy-OaaMUMy8_Pb_I4CV9h9vnoWk0HeTtIJnzVgJB3WmKYwXXJa7fxm27oeW9NRVGP24oyNY0SmPBkclO'
    'lFrySTJt4cQ74GAFzOCN0XU0P-qNEzkbxw0ShO6rGCWWi8qrdxkucZJ9CNsOPWS78eAUQ9eJ3p2NXx9_M7mw42Ym5JL0'
    'VlWItzan0Z79eIzHbRpbGmHrMWq1cmGqMtoAsgTMe__LxZm-zKO0gb7Qmke4jQvSSR-iq8sFoE3vVUsXPnPcr7Vo_5sz'
    'bSNsih0rkXWbMHoN37fxO8yfEvTAPqQ6nT2osRLXML9hqu21bGXnhU802QxO1jmTwmqEx8ueq46Xorp8RNdHszSADYzU'
    'gybL4r0EfRcIAqD1Qk8CoCYcC5dxUBAA7lHkr33wqjIO2ZYzAJFj9wb3b2yyk70BMKoLiCOEIzFoifO1VohqEk28kXga'
    'IQJtaZjvq_NIXs_spE15Kz0wJ79xLSkGm-2BteKTE8PRkBIz-bErivGewOvcIIuMmMNSj76Q2O-25MynRO5TlSKi4qHa'
    'fFfDIqbVepNTNeGxoEGoDou7GGPzRHEggwJYkLMfxl4idRLjgCrhB-hzFscdekQ8JsQssrKRFJ_pGmLiw3ytpVaujRfB'
    'RwmRkFZUnGDeiaojJe5axZ2BoXkaOzau7rEyTkRWR3IkqOWplKIyhOybN1qekLJQG-cmhducCnjgN7ss3O_hUScf7g-W'
    'HYifviU2D6xLmj4VpLvFjbLOA_niBKskrJrq7-aBthZ_SZkmY1WhJTGI93pjZlIQN__Y_JZ_R4dX7j2y_L1OqyprVnny'
    '6DSqedbPY4OqjG5o5ElUv1CBHkX3bo7Qi8xEEa8iaVJT4oXS-b2uBcV4Inl0ZwEvEJ8EFWjw141NizPT1Hcwdbu4Mm0b'
    'OFB2daQdcDQwSlUDUawuvQH5j7Vw9DthrwHjTmnJZ3U36s0FYjGZM_wv7bsgmL4UGCmvRIrP3B6txBGapgudYNh6NY0k'
    'PzcT6O-n-LdBoIT9IWc-i-AMlXS59-3kemdEzyB691wYs7CNfVieEhdBvEhUGY2rxH6XUNuDUcS5EeDys9JDTU2CaYPB'
    'sc6-Td3HmHLYZ47h3MyguwFOnATPPpgOh608Q-tFvUeoiXx5waPtnaFC5aSWoUdBq8KpTMcKCk8pQQ3KIeSgs0qC4oCh'
    'fiC0tkSDPZqi8hpYZX4CtEY-WQMl-wQYy9Dyj3XY9JN1qXUph_oUqmDxtGfvyg1C4-74apYgLL1ZsroDqGBPdyIG8RNY'
    'a3oBofKC2KPHK_69LTjkDPqxBeJTpCFHaCK4J6-oTU1PGWLp4Ncim1SHgocaQ9k0QvCJGEbYp4Cdw3zPVC6iLDRQMduX'
    '7o1hTkr1FT2TqkB2Qse-i7aYFsTHIx_7qpyhyww1KN0LDm4HHcM0-n5rYvsJXHw2_YFeSxteUVagunbEG2ejYilHZ-lN'
    'l98eGNdVQ4lcujs8Rgx4gEMhZouzT8BJDzi37RSi2ebHemTno-Pz1UqiumMgB462U-L09H4Zu5_QazyY28Q5YL0cmvmh'
    'iM-fvAQCqY7PgJWKCu8J2ahP0qMmmedT6k2YZG_xne0NOlAqF8fQtAHhHsU5mMtOwaC1AzeQpWcN1d0QKToA3aHJ1-LJ'
    '3TZ5im1Su8NVHbqrqJfcLkIPO2pMldPJVvHIgVPJIj9A8qoOZHNbQu5aXT7r_tWud93fpn7yZW5tn1eW_P9bycApeKlK'
    'GSM4M5BX1dxRL6X0_OvWVA3OTBS77ByWzyerTgqBpXanFXz-wYBaxxPAQpE77JryZV--vordtqi_PL--PG_3Na65qp_x'
    'afbNl229KzbbXVHtn7dfNhg1VVnI1_JQ1l-qnJVDV-tEIutfflC6nJfpIU2tkVW1nPIN8UUBqfGCMlbXU96w0Banhjoa'
    '28f2OcxWfZD5-KePf2T88_h1g0yoFV2YqKohcBrVtvHuN6vfK2Ld3RTb5wfvuvhmmwSHgk2N5PKRFH4xoLdO-N1p87JD'
    'zBioqo9nhONI9WXzuj88F_TLSfd-ZP8DRlDMWw=='
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
