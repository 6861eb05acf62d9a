# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_debug@0.1.0, plan cpu2"
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
    'eNq1WE2P4zYSvetXCLrsJTFku93jDpAAyQK7l11gDhvsodEgKImyCZOihqS62_n1-4qkvmxngBzWwEyLxa9i8VXVK75a'
    'UctevGUd1yL_OS-U4prvWSOq4VRk78I6aTrqKDfbTVlkbtCa2ytJfs2f83_nPbeY6oXN_0VT832O8f4scmcGW4vctPnX'
    'qz-b7m8u5-7a1dL8hH4rRK5lN3jhaALPFe-96YusES0flGe94mHfuh92RWbFt0FajIXkl5-hS5F5fqLma5bjl_Qufoit'
    'qP7U0Abfb1i6x3G5Fw0tU2TZqzaNUG9Zy7VU1_n40EJqNHeH56xjil9hBjSpcRa8oe8tNS7vyzZ9sjgRrbbtUuPL8zF7'
    'NzWvmJN_kJF35dMx64ylzsJqR59FEDDRh8XEj-UhCoZOemba1gmPjpYrJ7LeOM-o102ibxeWFoxt7r3oPK6OVZLPw3jt'
    '5Tv36UqdVANutOZKMKEr0TSyO7kHa4QhkJebcik1rWc171OHGXw_-FvpYrjsLo8Wr3h9EV24Etf0HAopSYqwD9k15oPW'
    'yU7KVFwxATxeg8CaXjCgzHM0DyX9NkspUzC4Sjp4-fB855ZxB7s61nN_jpDwBrrgluxCVpsO-_qIgde3rLey84y3kLDY'
    'l3wkLpu9EnThUcBWuMzs1A_YA6NJRPdPElqbd9eVR_3nw-SWk5mCD0mXa16fZSd-yqV3-T-__u5y2ZJ3WZFz-tddf8gF'
    'dg39f__6O4FafPai9m_xLHFjJ6BoEz7j1mSWXvAL03AOe2UnWSVpctvkINFAb7NdqGNqbIL_FGRJK3ozTmq4529poWQz'
    'Lz49u4hwSvqGVc_cMy80jOXFyvVMPWhgg2nuLpNV3Xlo2wBCbwc0vRVw2u40DahhKQGPs1GLbtCst6ZG68ct3Yk1rVSY'
    '8JaJjldA_CSZ9-DvgI_l0Jq1RjXxtHHc2FFkY7tFTKLrLUeJZcG9RLjzSfbBrR7IG_bjxsnkruO9Oxu_3v6mc6HHTU8I'
    'X8JbWeN6lDmN-hzGbeBfztjKcNuMVmukC121UQYIJxzfn79a7OmrIkpbjOdKsYjOcULa6YN3TbXAv-m91ISPOa382nD9'
    '3yJTNqKs3GcVvHQbWi_hexe_of4UAo_Zh5Cns0c2qnnw-802k0CMIHxMYawdnGiKTHCrYB4veiZjVPmIRx_VUvADYKQZ'
    'FGkW7yWMdyEmA-MeMWYUADVhWxwZGwUBvCOK_LUPp6oNgpooMgCRYfUW929s0jN7BWBkFxBHDhEDeOF8oySsmkRTmEmp'
    'ESaiwAX1fX0e88XTGP9W0mPmxDemBNlguztmmn-OOYA0Hc-xL8vxnpBKKZUow2ezNONZSOz3OzrMp0CoIGJAcY2FBP_d'
    'ERY2rdeLnOoJjyU1QkJe3MVomw3ZgRQKYIHPfhh7iZGWAhQiq6M8sRCnFAiLR4eYRVa0guwzXUN0fKivlFDS6XgRbJRQ'
    'zFKS-ADUOxEhIcddD3FnYGjuxootkhRmxo6YBOAcCWpFYi9IJMH75oWWOyQvVMa5acCtTwU8sJtVFsfvcaJOPFwfQXmg'
    '-PQtBf8QpGmkT_nrbnIrLRiFA6OCVgJaTZRn-2C04n9pMHXGJERTohHvx42eSUbc_mP7W_GdMax27zHK34_RsrZm5SeP'
    'dqMUaf3cNkjiKnCWlExMFzLWI_Pe9RF84ZpI-nWMmkQEPZequB9rEWM8RXkw4gAYiE-cEjoC2I1Siz1T13dAdTu5Nlqv'
    'qJVHkAZIKW3AjPWlN4j-YzIcE0QCHxjc7JdsHu7GcXOGWHQWGf4X9j3wrucSLeklT_aZ6dRKHLFpusC-w9Krbnj5uZ1u'
    '5b6LfRs4ctgfYg5oEZ0hlS7Xvu1crwzrGVjvPhhGN9SRtxXJc2HEi0CaIeaC9S4huQelKOhGhIvPWg0NsQSjg8Ix0b5O'
    '9GP0Oawz23AGIOgNcOIEAu2D7rDZ6mSgahO3Z8sLHnXvDGUqJ5QIJAVchVGejikUJyUPNciHkCOe1QIxDhgCo4chNcXB'
    'HqyouoawMpdd2oiNBfMHFwSMRSizxkRsZn9K3KUamlNIg-XmkL1LN3CFu2OrXoKw8GYZ1h1ABX1QEjgfyWJkM1R1IvUi'
    'sscTrwLwbcahw4CQLRA_urruYZoI7ulURGtT-UhhOpxr4U2oTAZKMuRNIwQ3FGK43QTsHOd7pnwRZYFBRW9fHm80cxrU'
    'XEGaZB2LrkC8aIlpQizY2Uisigw0MyShdC_YWA-JU49nv1VRfwIXn21_pAp1i2qNUCxsR3HjbGTM5aCW3nTF7YZxXj1U'
    '8KW7zaPFYiUYbLbY-wSc9ICz1pOJZp0fjyM9H21frGaCy6LcIGYaK2-u-jOVhfsd1X7cEqhiTpymUHR8C_GEgaoKQ3Vr'
    'KJFGxhT4yYO-beyDe1RDO9fz-P1J9RDi8Fg6rIbIUIOIVn6GZwCoz4rJWycYZ6_xOcQbsFbKMG-B6MEpcLKA2X12Cgqt'
    'D3CDciqFKFcH49IGYJSmWIun4-p0UiyTKBKTTazDw7h07DLw3nHElG2d0JLFsDllOToH8oJsQny6zTp39JjNY_8qU15z'
    '4sRBn2c6_LTS5P9PP0MYQjEsRLTgHLS8rGcWvpRSyditozvCbIrKS7KxLLmsPEkYliiS5mx-kyC6eQJYyHLHfVs9H6qX'
    'F77flc2Xp5fnp92hwTXXzRN-7aH9smv25Xa3L-vD0-7LFq22rkrxUh2r5ktdZNXQNSrFnfUDHbKd8yIV30SnrGxmf4N9'
    'kXMaVF3GqmbymyxQ6UTCo7J9pNyht-6DzMc_ffwj4p_HFRE8oZF0YbyuhxAGw8tTuvvt6kkkpuptuXt6UAvGOm8SHMts'
    'Ip_Lwiq8MlB9FJ4Ht8972CxDdOvjHmE7Gvq8fTkcn0p6nOneySBOekGo8MEbX0fRhs4ObdCXnoiKu9ejEnYZIkLvHm8C'
    'AUMY6JDkR78L6zo1WD3tQrQU8Y1Ab4eO3H5mCFJHlk43HN5twxtI-JpW0waz3LQcIo8Viza5gqLC_S7ZjqyoAojH97GE'
    'cHiUO-t0FipgKczV8PELcxfxsQhvh02MPBUY7Yds_HlhgP8BIfPQyw=='
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
