# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
#   digest  "83fb65b99a320d7496425d000cd4444f5f72d301230c542712d3fcb0e9b8bd7c"
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
    'eNq1WUuP47gRvutXGLrksuP1o7vHvcAG2ARILgkwhyxyaBgEJVE2Y0pUk5S7Pb8-XxWphx8ZYA8xMNti8VVVrPrqI_fN'
    'qVJ3ap-1slGLXxe5MbKRW1Gpoj_k2Vk5r21LHavlernKM983jXQXkvy2eFn8c9FJh6lBucU_aOpiu8D4cFQLb3tXqoWt'
    'F98u4WjbP_mF9Je21PYX9DulFo1u-6A8TZALI7tguzyrVC17E0RnJO9bdv0mz5x677XDWEj-_Ct0ybMgD9R8yxb4Jb3z'
    'n2Irqj82GovvPZbuYK4MqqJl8ix7a2ylzD6rZaPNZTIfWugGzc3zS9YKIy9wA5rUOCpZ0feaGqfzvE2fIk5Eq67b1Pj6'
    'ssvOtpSF8Po7OXmzetplrXXUmbvG02fOAqE6Xkx9WT1HQd_qIGxdexXQUUvjVdZZHwT1-lH0fhJpwdiWIag24OhEoeU0'
    'TJZBn2VIR-q16XGipTRKqKZQVaXbg3-wBg-BfLVczaW2DqKUXeqwfej6cCudDdft6dHihSxPquUj8VUnoZDRpIj40G1l'
    'P2id7GBsIY1QiMcLC5ztlECUBYnm84p-y7lUGDjcJB2CfmjfsRbSw69edDIcY0gEC11wSm4mK22LfUOMgbd91jndBiFr'
    'SETsSzkSl83eKHSRUYgtPszs0PXYA6NJROdPElpbtperjPrXh104SW7iHNJ-0cjyqFv1y0IHv_j7t9_9QteUXU4tJP1r'
    'Lz8tFHbl_r9--52CWn12qgz7aEvc2CsoWvFn3Jrc0il5Eg2Sw13EQRdJmtI2JUh00H7yC3WMjSXnT06edKqzw6RKBrlP'
    'CyWfBfUZxEmxlfQNrx5lEEE1cFZQV6lny75BbIhG-tPoVX_s65qDMLgezeAUkrY9jAMcZZ-kHGQPl3CcQgK6qFTbN6Jz'
    'tkTry5qOyNlaG8zfZ6qVBRJglExbyjOiyUkYIWprqmh8HDd05NnQrgFRdNqrQeIEZ5viEBhlH9I1PSXHdtg4nYBvZeeP'
    'Nlxvf9M50-Omh9FMBadLnJaxh0Gf52EbpJu3rrDSVYMTK-25q7TGIuAprO_tL2Z7hiKP0hrjpTEiBuswIe30IduqmKWD'
    '7YJuKFymKvNbJZt_55lxMehW26xA0q659crfm_gN9UdE3GUfSh-OAcWplAwDy3WmEUCKwmVEtbr3qsozJZ2Be4LqhI4g'
    '8xFNj2o1PaCnsTSzb4a9PFZB0IRLx1qOpS0fTEMxIjA2Vk4rHZztuxTm2ZtBsiHyqt6QvfG0WQvPwI9ECgCyQYBYZGPg'
    'SKjPAqRgFA1alBbIqfIM0S6weo2osi5Zn70hDHXLcUxZF6tE7kNlNM4qiUYsS_UXjid0hFNCeRyK0tMAslfSXebVuzCK'
    'PLve7LJGfg6FhjQd7NiuVj9y0ehREofthoz5VMAjYh8EnoJd_cMRDj4trxcx1ntRHvv2JCLWRY-y-KRcq0xEK1ce8-y7'
    'YHkMoYR1h3JME24wbZhF7uDcJTmSLOIYBpR8WHeK9YBgFPjvqZrNxKlQ48hink4ip2pFDh7PMeIR7DdGGe2beJJikBCy'
    'Gl1yYKoD0SbCk-sh_ojQnrqxYo1SipmxI5Yq5GzKgDxxLJQ7BoVpofkOCRzYa8OA21TngBI3q8zM72BRqx6uj9LRE2y-'
    'pxLFpYRGhlRl7ybX2oH3IEcP0EpBq5GYrR-MNvIPDabOWCppSnTi_bghtcmJ67-t_5L_YIwo_TkWn_sxjS6dvUq0R7tR'
    'IXdhaltQDcPMKvoXNZ3r6iP33vVR-CK3QU3KCOZUKoPUJr8f6ywDIbDvaDlgID5Ioh1AwhulZnumrh8E1e3k0jbNFQEM'
    'qB0IUqpmcGN56iyK0lCjh7qVgg88c8pLMQ33w7ipcM068wz_Ve7M7PBlhZYOWib_TKTvShxj07Z8R-Clr7qR5cd6PJX7'
    'LvHeS5TW72pCxBidXOHna992Xq8M71l47x5NYxo2kV3mKXPhxJNC9SN-hfVOzDlYKULtGOHqszR9ReTFNqxwrP9vIysa'
    'cg7rTD6cAhCkC3HiFZD6QTdvdmUZCOV4AxHzAx50by2VOq-MYu4ECiWIPsTKDkspQy0KKuTAs1IB4xBDuHfAkQ3hYAey'
    'VlwYVqbLYWPVElUax75EGCu-DLJ_7VC4k7m3hWsgEXZKusS7ir46qFhHnrOz9r00OGBx1UtxroKdY79H5EFp3G6Ya4xM'
    'jFgGCjzgP7rlCqVvyxJZDDI5S4sBD5oO_osZMJpODD3dhAnL2fhZyuGS1VMlym8pc_Y2hO2SYEm6JcfbbooNqjFRxmQw'
    'IsRgUjedTBpTXUD_dBlvk0whaYVhfHyIEANDzDPwZS5b6SRxYieNk2-w1QgETZ9uD4NrblVuPhFbn3W3o7v4GvdSygSm'
    'BvCz1ZFQgDUH2-a3KsR5ZV8gH-_UiQ6Nd1526WxvZoRIiaYZXTZZ8Xgc6flo-_xqJmg6LlZEuuMbgzTdkS7A2w3dcqWj'
    'mIt1dZxCCLtnTBJg4crSDZ0vgwNtY47zoG8d-5BiRV9PLxf4_Y-LEWP5cCu6GqL5eqVq_ckPHlBf5GPGj1GevcWHn2BB'
    'nalK7ZltImdgGYf0FlybFLo24CYJ6JZH9Z6dSxuA1tr8Wjya2yRLsUyiWUJX8cWBxyWzV0y-hxFjxfaq0SJC71gpyQ7U'
    'Fl0xxt1WrjuOLqaxf5SuXxPzxGNfJk7-dKXJ_5_CMkohS5WKHpwwLehyugrMpXQbbq8rBKA6IfucsMxvk04fNBxLNKuR'
    'Ynp9Icp6QLCQ53bbunh5Ll5f5Xazqr4-vb48bZ4rHHNZPeFXP9dfN9V2td5sV-Xz0-brGq26LFbqtdgV1dcyz4q-rUxC'
    'ouunSFRMH1QCSaJkTldTvsG_qFsVrn7WmWrMm4zpeCLyUdku0vb4WtGxLMQ_Xfyj4p_H1zJkQqXpwGRZ9gyD_MaWzn59'
    '9fgTy_16tXl6cCGNl81RsFtlI4Gd3-74AYUuafwQun7ZwmcZ0K2Le_B2NPRl_fq8e1rRM1R7Jod4HZDJESh9dBpinFPz'
    'behfkiOgGgaml7H87tFsBSf1MVzv3qyY0QETWrCGIQl5XW9614y7EM8F2FEGuL4lDJgoh24i7afj5udqfgDgr3G1xmKW'
    'H5cDDDk1a1NeGLpd3hXmgWYViOjhWTCFO9LLH5tkC12pCfNKJPxJ-JP6mGHd8zLCUAGK_KGrcJw5IGlw6guqbeB7--yk'
    'Y33_jy3g75yfXnwny2vQTdQ_Gv7eq14NR-TOqI4UXWR0cozTyL5wgX7Sp7Nkv4muR_1P_ogHO5N3FmF_Gd5XCdwpVoeH'
    'QYtuexi7Y2vksow1zhGZRUBQMRifJ9uzrrTEoTY_owsqT258obfgvsX1VPSeU3XNEB9FQ2VgWX3TTmOcnb3E8dMiodQg'
    'Ziy_KU5cL4OZHdjL6mm3enA2SwoBETmudfsHA2RdU8W-POozslDGP5zVtjY-gz3sHnz3sPNsTY_4WKY83QPlJP_Pizxo'
    '3Mm-RG7iv6R-xEKqUT-PktFL0wNiBCsKJxhK8TALHEQW1ePhoPMHSnUWOPpfA7If2g=='
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
