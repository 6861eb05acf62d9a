# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h100x8"
#   digest  "fbc9e2ba55f020aa37fba6a70320af67b9567037f3bedee0fe8f9bae83b26a73"
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
    'eNq1WEuP67oN3vtXBF53Ms5rTqbALdBboOiiQJddDAaCbMuJENnykeR53EV_ez9Slu08etEumsWMRVESSZEfSb05Vele'
    'vWedbNXql1VujGzlThzLPPtQzmvbEbVYb9ZFnvmhbaX7JsrfiW-1W29Wx19XjbPtyldOhuq8woq_7P-42rwcV6U2hnYI'
    '9qI6n2e1auRgguiN5G3Pm6L4OuaZUz8H7ZQn2p9-wWF5FuSJhm_ZCr9RqvwPcdQ7FZzUHcbv2BPDSgZV0-o8y95aWyvz'
    'njWy1eZ71gnH6xbDffH6knXCyG_oh_Fui9FZyXoaXD6m8TGjLxFXbrbHrGm6NNrvdi_Zh61kKbz-TUWG7QGbW0cMuWs9'
    'feZMEKqnDTfqqThEwtDpIGzTeBUw0UjjVdZbHwTN-on08yLGDeNYhqC6ALOKUsuZTVZBf8gwXpjXZsB9VdIoodpS1bXu'
    'Tv7BHswCerEullTbBFHJfpywQ-iHcEtdsOvu8mjzUla4eL4YX_cSAhlNgohP3dX2k_bJTsaW0ggFb_tmgrO9EuGsgsTw'
    'UNBvvaQKA5ObUYagH-p3boT0sKsXvQzn6BjshLgnt6BVtsO5ITrC23vWO90FIRtQRJwbIyBuO_rWmoUhy-HQ9-yio4rJ'
    'zRpchXXkPGQ6p0-6g4Kt_BJe_RRG0X7Hzes2M_ZTNPB9Ma1AlGVnfTrfkPcgl6R6I31gL00Eb9iMtK5dXmUcCGnM6K1s'
    'LDd0FCkY4pPUoUBE7EMp9s3s1A8wGZQnErs_KClSr-L_H51aMZNtVgoSh9XfmCV7U1-9qsJ7tHfczSsYs-bPuB9J0yt5'
    'Ea1qrfsWJ12OVG8HV6kUyvES3-e7o4l_Pa8rWZ3Vc9BBdk8RwfxzNP9zMvjztGbNl5aTUzjVW9qihe2eeMEzA9kTgOzp'
    '-CsdWcsg30cxRq8I6iuIi2K96Rt-c5ZBBNXCfkFdQYythhbej-v2l8lv_HloGjPZ3QenAE7daWJgfXBTLireDa3ona0w'
    'etrQNTnb6OhsqpMlLnaizGfIDwSIk5BaNNbU0VaRL03kWRqTf9GNF4niBAMIo9hM-5SuHSjed-ng8cJ8J3t_tuH6-JvJ'
    'hRw3MwzTAHFd4XKNPS3kGc8BhHjrSitdncxWa89TlTUWQUyhem-AcnFoQBJjagN-CgUnlzg1nvQpu7pchLjtg27Jb-ak'
    '-Odatv_MM-OikxbFjqNvw8NX_t7G70M2w_wx--TIEDXyE2PbepNp-IwiD5mguhm8qvNMSWdgoKB6oSNyfkbdk1wGcQQv'
    'qQdDosWbYX46bwuhECUBQJNI8Bw-GFrjKCYgviIpfPesWGUB3SrP4IwC-0-AAyXJ7zjLsttRVMQ8lVf7PA0XSMqgDLFR'
    'AUzZMGH7FfWw2WY3OEjQOKY4EjEpsCfoT7dU9QPlSmPlbJM6qUHksNuSHl8KOEOQQMAN-ZzkVFwyy-blnsXBotX1Lqcq'
    '-eOhoEGtyuG0uIlkljWZgSRiX0HMflp3ibmE4A25w1MmXJDHJA9rx4CYSU41iqw0XUEMfMhvjDLat_EORKIQlBlNaA7x'
    'Tk5Fg1-z-DM8aJ7Gjg3SMFbGiZjmEBujo-VjeYZUycE3b7Q8YQxCY72fGG5DSvrvrhI3uyzU76FRpx7uD6weCJ9-jqmD'
    'sZs4w5ih7xY32qFm8igYIZWCVFNlt3nAbeT_xEyTMYXRkmjEe74Ul2TEzV83yCP_mUdU_iOGzD1Pqytnb2LonosSrAvz'
    '2KJMMVyVjcnEdpyxHpn3bo7cFwGKOqCKoEn1bpDa5Pe8DvgSCOXD2bLDgHwCAigH-LoRanHmOPU7TnW7uLJte1U8Is_X'
    'cFJKGzBjdektwD8lw5QfRudDjTrHpZjZfeKbE8RiMs_wV7kPriw3BDwI8aDlaKEZ6K7I0Tttx30Gb341jTg_N9O93E-J'
    'n4NEEvtNzZgW_ZOT6XLv28nrnWE_C_vd42EMxDYWczmP8uyikGOocMFmF87tLBHBbnRw9VWZoaYiwbYsbUyzb1P1kUIO'
    '-8wmnP0P1Q3cxCvg7INpPuxKLdR5U_MilvebBPfKKK5OkM_TJ-oVQak6JlHb54S4oMA-FYFapQB0cCQ0LrBlS2CIKlGU'
    '34wtc2vZWoV6HkxuDV9W3FOmXGznoBoLmHKoT5wGi_Uh-9B-QA_w21T4xFnyYxXsEts9PAvyoPPxYVGA1wrHIvcC3qPe'
    'Vyh8m3ZIGVRlt25PZNup6OCTUlTxju0yQTWrtYgotCwDJRqKqOSEa4IZ6dbsPcf5silnRBoXUTHil9olK49M9TfqJl3F'
    '1pJrL9piWhDrdZFqK_RL2nAiGq8FB7fDWFcn1W9FbL_gHF9Nf6TuZoOelFxZuY6w42x1zOcoL4Pt8tsD47pqKBFNd4dH'
    'i8V-l222OPsEN-nh0207mWiW-TEfyfno-PxqJcpZtBxUnBL2vGTS9GeZ2rwgHflUzIvTEkLId0YUgWpVWerOucniRwyq'
    'BalGeTC3iXOIjnJoUpbZcqX1uINgLE7twxWL5j5ENfqLHzsgvsinkJ28OHuLbz7Bom6lLPPO9R5iApqxz-6yEwt0rcDk'
    '5MnNbEX5mo1LB6C2tPk1eVK3HTXFNmOZJHQdXxuYb1S74Lo3cUwZ16tWiwicU6YjPZAbdM0g9X4r3VV5LGbG_7JSPi4q'
    '4m2xP2ZzO7So5pcS_P9LT0YfNMJKRcvNWBV0NSu-pFK72F1DO9B1BONlobHstrhdxznAv1aK-cWFSs2T4ueOvCmrV7Ut'
    '5eHQFNtCyt2PppQv8kexw6h5-VG-Hl4w-NHsSlUrVTTq2LyWUh135RZs6MvLoavNiDe3r49IdjDW2HpTMeV0PUcaLIxs'
    'U6Pjss7U841xIT2W4FHcPhbcPFv1TAvxXx__qf53uyJEQa3p0mRVDQyB_LY2OsDL_upFJSbr_eZ1vyv2D7vB2Okl0u7I'
    'IZ6K0Osei98bqFXiJ89iV2xfNltyQ2P7eB4fTXL-eN3s9_vX121BTz3dB5nI66DIUwJH5lsirckakAxz4ytSfvfAVMBS'
    'Q_Tau6cgLsgACR0SfopB3tebwbXTKVSmAusoENzQEQQQc2epr9VtrNrp1r8Ry3zv8WvarbVY5aftgEJOLcYUHoba-Lug'
    'T2VSCcdOT2ij1yPK_LkddeHHOUBehci_CH9RnwuoO6wjCpWocD91Hc4LA_wby4ILLw=='
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
