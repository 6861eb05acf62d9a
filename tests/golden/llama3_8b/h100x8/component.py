# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_8b@0.1.0, plan h100x8"
#   digest  "fbc9e2ba55f020aa37fba6a70320af67b9567037f3bedee0fe8f9bae83b26a73"
#
#   torchx run -s titan_local component.py:train           # detached, on this machine
#   torchx run -s titan_slurm component.py:train           # submitted to SLURM
#   torchx run -s titan_kubernetes component.py:train      # submitted to Kubernetes
#   torchx run --workspace "" -s kubernetes -cfg queue=default component.py:train --image IMAGE \
#     --outputs /outputs --mounts type=volume,src=CLAIM,dst=/outputs   # by torchx itself, to Volcano
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
    'eNq1WMuO5LoN3fsrGl5nquvVPdUBboDcAEEWAbLMotEQZFuuUkq2PJLcj1nk23NISbbrcS-SRXoxU6JoiaTIwyO9OlXr'
    'Qb0VvezUwy8PpTGykztxqMriXTmvbU_S9WqzWpeFH7tOui-S_J30HnarzcPh14fW2e7B106G-vSAL_6y_-PD5vnwUGlj'
    'aIVgz6r3ZdGoVo4miMFIXva0Wa8_D2Xh1I9RO-VJ9qdfsFlZBHmk4WvxgL9kVfmHOBqcCk7qHuM3rIlhLYNq6OuyKF47'
    '2yjzVrSy0-Zr9gnb6w7D_frlueiFkV_wD-PdFqOTks00OL9P40NBv0T8crM9FG3b59F-t3su3m0tK-H1TxUVtk9Y3DpS'
    'KF3n6WfJAqEGWnCjvq2fomDsdRC2bb0KmGil8aoYrA-CZv0k-nEWacE4liGoPiCsotJyVpN10O8ypAPz2ow4r1oaJVRX'
    'qabR_dHfWYNVIF-v1kupbYOo5ZAm7BiGMVxLF-q6P99bvJI1Dp4PxjeDhEFGkyHiQ_eN_aB1iqOxlTRCIdu-WODsoEQ4'
    'qSAxfFrT32opFQYhN8mGoO_6d2qF9IirF4MMp5gYnIQ4J7eQ1bbHviEmwutbMTjdByFbSEScSxUQl025tWJjKHLY9K04'
    '6-hiTrMWR2EdJQ-Fzumj7uFgJz-FVz-EUbTeYfOyLYz9EC1yX0xfoMqKkz6ersR7iCtyvZU-cJZmgTccRvquWx5lHAhp'
    'TMpWDpYbe6oUDPGT3KFCRO3DKc7N4jiMCBmcJxGnPyS5Ui_q_x-9emAl2z4oWBwe_sYqxav6HFQd3mK842peIZgN_4zr'
    'kTWDkmfRqc66L3HUVZJ6O7pa5VKOh_g2nx1N_PtxVcv6pB6DDrL_FhHMP8bwP-aAP07frPjQSkoKpwZLS3SI3Tf-4JGB'
    '7BuA7NvhV9qykUG-JTNSVgT1GcRZsd_0G3lzkkEE1SF-QV1AjK3HDtmP4_bnKW_8aWxbM8XdB6cATv1xUnAEMpKgBqJt'
    'we7h4FyMQz92YnC2xujbhk7N2VbH3FO9rHDOk2TeUr6jXpyEE6K1pomhi3p5oizymNKNEmCdJU4wnjCozbIP6bqRyn-X'
    'N07n53s5-JMNl9tfTS7suJph1Aam6xpnbexxYU_aB4jirausdE2OYqM9T9XWWNQ0Ve5tAKrFpgE9jaUt9KkynFzCVtrp'
    'Q_ZNtah4OwTdURrNPfLPjez-WRbGxZxdr3dcjBsevvDvbfz9VMyofyg-uFBEg3bFULfaFBoppChhJuRuR6-aslDSGQQo'
    'qEHoCKQf0fdoVzcCXjtLX45d3stjFaRN-BrYzEE6GAwoK7Nv9TBSwzFWzisdnR2HlOjFq0GxIvea0ZDD8bzZCtLYwlWU'
    'YgCaZRHykd1BLOEAC1DEUZTtqC36gyoLZLzA-hOqIXSUzdzKOZmp9GIzLOt9mYcLuGbkRzBAM6aWmxvIhfRpsy2uwJbw'
    'N_VRMjE7sKf-8nvxmcJJ4rDbkh-fCmBGuEPdQXCcSaNilc3zrYpDROvLVYz1XtSnsT-LiJQxmiw-K9crwzlrXX0qi5-C'
    '5TGBElIe61wmTzxoVDUeF4mb47qiOJJLnMKAkg_rzrHjEQijw3nq1wtxoiI4rlins8ipVlGYpzOMeIQAGKOM9l08RJEl'
    'BLhG15yW6uhUPLFLFX9CYs_TWLEFWcCXcSI2Y5Rsyv8ykUg0dMaEeaHlDgkbOGpZ4brSpf_qa3G1ysL9AR716u766Cgj'
    'weaP1OC4w5BmSDzi5uNWOzA7VOgRVilYNfHPzR1tI_8nZZqMjZY-iUG81cuFTUHc_HWDbvfbOqL277HmbnU6XTt7VYS3'
    'WkQDXJjHFmTKMHeM8QUj4L56L7w3c5S-qHCwlTpiObXKILUpb3WdZRgE8p0sJwzER0AI4-CVUYs909TvJNX1x7XtuguK'
    'CzbSIEmpmyGM9Xmw6Em5R-e2lZIPTHquSzGr-6w3963FZFngX-Xemf9uCLlQ4kHLFKEZKS_EMTttz7chXvxiGnV-aqdz'
    'uZ0SP0aJ3vpTzaAY85N7_HLt68nLlRE_i_jdAmosxC5SzpJHZXFWaH1Er7DYmSkHW0S4HRNcfdZmbIi72I6tjd3_dSJF'
    'ueSwzhzCOf_AuZAmXgGo70zzZhdugY1OVyyxPN9suFdGMWkCzcg_QaMEMYjY2-1QEuJCgvjUBGq1AtAhkXC9Qiw7AkNw'
    'WVF9MbbMF-DOKtw6oORWyGXFN18Osc29Ozl93b4yj7Bz5SXyVY3NUcVm8lS8az_iOvNzIm1xlpJdBbtsAB7pB6NxiWO6'
    'MbExIhro8OgBMTgXUH3dm8hjMMrr2iCx7VWsgslzIu_p5k94zr4vyg63r5G6UXlNm4vXnLgrgibpVpxxhzlBqM9EGfPB'
    'iBLZmGE-mKTTfIEB6jremZlF0gpZP95DRCaJuAdqw60rHSQO7Kxx8B22msCgG9MNIkfm2uTuEwn22Q4HusdtcPumcmB6'
    'gDBbHUkFmHOwfXltQvyuHitU5I05MaDxZs8hXezNnBB10XVTyGYv7uuRnfe2Ly--BFPH5Yp4N-HXcyHNcJL5Qhuko5SL'
    'vXX6hFD2jVFJgIgrS-8QfJ3k5xoipMRz7sxt4hwqrBrb3Km2TPfuX44Yz_PN6EJF8xVLtfqTn3Vgviinsp-SvHiNr1vB'
    'gjxTp3pj0omSgWec0juwbTLo0oGpBnKN2Zp6PgeXNgDBteWleHK3S55imUS1hG7iuwrrJbfXTL6zxtS1veq0iOA7dUvy'
    'A_1FNwx0b9fWXXB0MSv-l3T9sKDl2_X-UMw3vcWVYmnB_5--MjihOpWKkZuhLOh6dnwppZtwf9kegNAJ0JdkZXmR5IcJ'
    '7AOQ6qSY35aIrh4VP-yUbVW_qG0ln57a9XYt5e57W8ln-X29w6h9_l69PD1j8L3dVapRat2qQ_tSSXXYVVuo7cqiGvvG'
    'JAS6fmdFw0SwEjwSIXO6mSsNEUbHanDts84084kxGU80Ppo7RNLOs_XAshD_G-J_avjdqxmqoNF0aLKuR4ZAfkVMCfC8'
    'v3g7ig1_v3nZ79b7u1fSeN3Mot2BSzwT2cuLHj-l0H2NH3fXu_X2ebOlNDRopLwfb012fn_Z7Pf7l5ftmh61-ncKkdcB'
    'VR1B08cwIuW5TF_z_IpCAzOhmB7Pypt3tTXCNsYUvnkBY4YHfOjBIHJB8rrejK6bdiHeC-CjqnBjT3hAyr2lm7bu4jWA'
    'UuALhc1JEH9Nq3UWX_lpOUCSU4sx1Yqh2-YNAmTeVSHL88thKgGUnD91yRd-kwT-1YCBs_Bn9bHAvadVhKQKlPlDN-G0'
    'CECy4DxW1OdAAOcn1n_ZCvEu-SXGD7K-BOB0FYiO_xjVqPIRuXd0Sso2cjoFxmlUZPiCfdKns-S4iWEEF0jxiAe7kA8W'
    'hfCVX5QJ6Cl380OhxbQ9TtNxNDFbxh_n6HkHCUGNYXrs7N91oyUOtXvEFEyew_hMr99jj-uqGD0XLxP_JMpdgmXt1Tjp'
    'OLt4meOnRkKuLGYictWouHcGsziwZ4D1-s7ZrCgFROS71r3dUZBtS937696ckZUy_u5XfW_jo9jd6Ry7u5Pv1ozIj1Wq'
    '0zfgnuRH8PLixfhbmkcupJb1OEmmKM3viRG-KJ3gKOXDInGQWdSb80GXd4waLJD1P8yKWi8='
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
        mounts: mounts of the container, as in torchx: type=bind,src=/host,dst=/container or
            type=volume,src=claim,dst=/container
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
                entrypoint='python' if image else sys.executable,
                args=args,
                env={key: value.replace("$", "$$") for key, value in environment.items()},
                num_replicas=1,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
