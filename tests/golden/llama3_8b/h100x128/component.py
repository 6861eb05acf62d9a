# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h100x128"
#   digest  "fbc9e2ba55f020aa37fba6a70320af67b9567037f3bedee0fe8f9bae83b26a73"
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
    'eNq1WEtv67oR3vNXGFo3juRHYhe4Be69QNFFd110ERgEJY1swpSoQ1GJcxb97f2G1MtObtEuehYn5vAxD37zzVBvjgrd'
    '0kk0qqbVL6vEGFWrrTzkiXgn12nbsDRdZ-s0EV1f18p9suTvvG61XWerw2-rytl61RVO-eKywo7fd39eZS-HVa6N4RO8'
    'vVLTJaKkSvXGy9aocOwlS9PbIRGOfvTaUceyv_wCZYnw6szDN7HCv8Gq5E9x1DryTukG4xPOxLBQnkrenQjxVtuSzElU'
    'qtbmc_YJ6nWN4S49vohGGvUJ_zDebjC6kCqnwfV9Gh8E_5JxZ7Y5iKpqxtFuu30R77ZQuez0T4oLNnscbl0tqeX9GT2l'
    'e-FsS9JfyCuI9in_W6fCa5JU51SWugnOVsp0JC6VVF1HvpOt8pfoVAggdLiFrLANbshHJ95OonW68VJVkMg4N9xePHaI'
    'yzrY0hXKQCkHqfDWsaMwyNgPWeEu5CTFrYuLPl8exDuIrdNn3Sgja3WTHWYNsbJDdtxAF98wQAWNIQov4tz2cAimsSwE'
    'FpIRA3fI-oe-ecJZcbOtVgQD_OpvYZ14o1tLhT_FkMQjO4K_ZfgZD-XotqSusqbauk951vkg7WzvChqREuN8msPLE_96'
    'XhequNCz1141TzFBuucIoufR7edpzzrENeF7c9RaPqLGTT-FDc8hT56QJ0-H31hlqbw6DWYMF-fp5uWVgvP8G9G49FVl'
    '2EzvehKddwQwN-fpMoOBwKGLnjR9LVtnC4yeMo6-s5WOF0yNyg3JSTId0al3YNIpmCEra8rofFw3TiRiHPP980Wmo8RJ'
    'gEG_B9TPsg_l6r7lPBoVDzfQNartLtbfq3-YXNjxMBPSGkmvC9yWseeFPYMeDzBYl1vlyjFspe7CVGGNReJwenwNQL5Q'
    '6kF6QVphvTJGOtVc58QcNH2opswXaWVbr2sGwkyiv5aq_mcijIuoS9OtyAGJLAyP4fcm_t6LmScO4iNAXZbgs88wnwld'
    't4ZqarzyAxdXfUdlIkg5gwB5aqVuZK6K60f0fbTLIDGAkrI3bFq8mbCe9W1gFGDvkb-jCMgJiuE1VAUBEiaK_GcbHCts'
    'pxtKBMAocf5ECHCScRdYOcCOYY7cCnt2yThcsJcBbxqYjYoxsudGnI3NH6X7bCMe6IUZhzl2IKjRgR3z6nhLRdtLiySy'
    'ao5JObrBYr_dsB83AnFwjjNZwj6n-NgkD0uyl69LHCJa3J9yLkY87lMelJT358VNjGFZcxjYooAV5OyHddfI38xX4Gu4'
    'Ag6fxfGEFtGOCTGLHFXEUZquICY-7DeGjO7qeAdylDA3Gc11EuadHcXEvV_SXYCgeRonVl3ZYmeciKUFuTEALRnKOcpT'
    'SL75oKWGIQmN7bppwWNKqe6zKeTDKQv3W3jU0Lfng3x75qcfQy0IZMwr_VAVv2yutOs8UK_OsIpg1dQJZN-sNup_WsyT'
    'sSbxlhjEr-vGvOQgZn_NUBj-eI0suveYMl_X1Lpw9i5bvtPGFdP5eWzRGhjVjjSJ2hkq0HfR_TLH6EV-oroXkTO5PfJK'
    'm-TrWgd68Uzy_mIDXiA-gwDIgb0ebFroHKb-A6YeNxe2rgMDUhP0IPZNCYxy1UAUi2trwf1jLRz9HrBXgW-ntJTz8m5c'
    'N9eHxWQi8D-5d2VCFQLvIMO9VkOEZp67E0dw2ia0peHwu2mk-aWaYP91Sv7oFWrYT5opLcIz1NLl2Y-T9ycjfhbx-0qH'
    'MQ_r2KElYZSIK6HEGNwkDruG0h4sYtaN-KZbYfqSewRbB2tjlX2bmo8x43DOHMK5l0FzA5h0BJr9Zjoou3MLfRu3HqEg'
    'yuX9joZ3ZCg0Jyjn40-0K5Irdayhtk2YcCFBfArmtILAcwBS2zNka-ZCdH0y_wzUMr9EaktoobHIrYFlCk-QsRTbdrJx'
    '6F_yvjyHKpiu9-Jddz3a7p9T3xNnGcfk7ZLaOyAL9jRnphE_IbYkqEXpBbtHv-9I-LHqsDNoyh5hz2LbUAT45BR3sMPr'
    'ipk6uLXIKN2g6KHOcEaNIFwzyyi3Dug5zJfNJSPKQg8VM37p3RjlYVH5ibZJF-FNElsvPmLaEPtvObZWiUCnGerQcC1Q'
    'XPcmRml0_dHE-gZw3Kr2wE-3TBacF6iwDXPHxepYztFdetskjwrjvqLPkU1flMeIAQ5wKMRsofsMmLTAdF1PIZpt_n4d'
    '2_md-uRuJ9PdKdCDROdJ0D68gMIDlvs67je-mcviHKCe99XUdYWu6fvXQCDW8Slwt0SHNwVV-sbruE-WyZR_EyTFW3zv'
    'e4selEvGKfRuALhHgQ7minMw6N6BCbEjZmzBtTdEihWgT7TJvXhytx48xTFDyyN1GTqsuG5wOw097Lhiqp4d1VpGFpzK'
    'FvsBotdlYJzTo3V3ra6cF_6XXe9h0d1u0t1BzE-bRWe-tOD_30YGKsErlShGbiYer4vZ8aWUn37NPU-DKgdmXXYNy5dT'
    'eEtDD8isVnL-YsFt4xkgCcUpL460ydV-X6WbVKnta5WrF_WabjGqXl7z4_4Fg9dqm1NJlFZ0qI65osM232DZNhF535Rm'
    'II-7L0_ZBpmF2oVwDQ9pbo2cLmnKNcQYxaPE-8k6Uy6-84jQGA8tdTS5jQ30MF-0Qerjnzb-ofjnj945yIVS89WpougD'
    'q3GJm95sd988YvndZcfdNt19-7yLT7dRtD2EPB-7yvtHU_iAwG-f8M0r3aabl2zDWDS2jfqCajbz9ZjtdrvjcZPyx5jm'
    '_ST-DZRb66M='
)
RECIPE = 'llama3_8b'
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
        "16",
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
                num_replicas=16,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
