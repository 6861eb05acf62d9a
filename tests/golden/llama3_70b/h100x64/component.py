# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_70b@0.1.0, plan h100x64"
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
    'eNq1WMuO67gR3fMrDK3TbsmvdgeYABlgBrPIPouGQVBSySZMiboU1Y-7yLfnFKmX7c4gWcTAvW0WH_XgqVNFvzkqdEsn'
    '0aiaVr-sEmNUrbbyJc0T8U6u07ZhcbrO1mkiur6ulftiyT944Wq7zlYv6a-rytl61RVO-eLy11W23q2808bwbm-v1HSJ'
    'KKlSvfGyNSocecnS9POwS4SjH7121LHwb79AUyK8OvPwTazwGWxK_hJHrSPvlG4wPuFQDAvlqeTdiRBvtS3JnESlam2-'
    'Zo-gX9cYHrPXjWikUV9wjscpRhdSJQ8OOwyu79P4KPibjDuzzVFUVTOMNsfDy0a820LlstM_KS7Y7A-isa6W1PL-jJ7S'
    'vXC2Jekv5BVE-5Q_61R4TZLqnMpSN8HZSpmOxKWSquvId7JV_hKdChGEDreQFbbB9fjoxNtJtE43XqoKEhnnhquLxw5x'
    'WQdbukIZKOUgFd46dhQGGfshK9yFnKS4cnHR58udeAexdfqsG2VkrT5lh1lDzRhd8cZXDEhBY4ziue3hDyxj0SgZMXCD'
    'qt-gzq_iTlutKAz_CKvEG322VPhTjEc8sCM4W4av8UgObUvqKmuqrfuSZ50P0s72rqARJjHIpzm2PPGv53Whigs9e-1V'
    '8xRzo3uOCHoefX6e9qxDUBO-NEet5SNqXPNT2PAcMuQJGfKEDGGdpfLqNNgxXJunTy-vFHzn7wjGpa8qw3Z615PovCNA'
    'uTlPVxksBApddKXpa9k6W2D0lHHsna10vF5qVG5ITpLpiE69A5FOwQxZWVNG7-O6cSIR45hvn9GQjhInAQX9HjA_yz6U'
    'q_sWsu2oeLiCrlFtd7H-Vv3d5MKOu5mQ1Eh5XeC6jD0v7Bn0eKDButwqV45hK3UXpgprLNKGk-MxAPlCqQffBWmF9coY'
    '6VRzndNy0PShmjJfJJVtva4ZCTOB_r1U9T8TYVyEXZpme5EDFFkYv4bvm_h9L2aaOIqPAHZZgs6-wnwmdN0aqqnxyg88'
    'XPUdlYkg5Qwi5KmVupG5Kq4f0fnRMIPUAEzK3rBt8WrC-sh5KfjHeqTvKAJ0gmK4DVVBgJSJIv_VBs8K2-mGEgE0Spw_'
    '8QG8ZOAFUg64Y5wju8Ie8PswXJCXAW0amI1iMZGnOBub30v32UbcsQsTDlPswE-jA9sd8-p4T0XbS4s0smoOSjn6wWK_'
    '3bAjnwTu4DRnsoSBTvG5SR6WZIfHJQ4hLW5PORcjIvcpD0rK-_PiKsa4rDkObFFAC7L2w7pr5G-mLPA1fAGHz-J4Qotw'
    'x5SYRY4q4jBNdxBTH_YbQ0Z3dbwEOUqYnozmOgnzzo5ixG-XdBdAaJ7GiVVXttgZJ2JpQXYMSEuGeo7yFNJvPmipYUhD'
    'Y7tuWnCfVKr7agp5d8rC_RYeNfTt-eDfnhnqx1AOAh_zSj9UxYfNlXadB-zVGVYRrJo6geyb1Ub9T4t5MpYl3hKD-Lhu'
    'TEwOYvZ7htLwn9fIonuPOfO4ptaFs3dJ9LiKi6bz89iiNTCqHYkS5TPUoO-i-zDH6EWCoroXkTW5PfJKm-RxrQO_eKZ5'
    'f7EBLxCfwQDkQF93Ni10DlN_gqn7zYWt60CB1AQ9iH1TAqNcNxDF4tpasP9YDUe_B-xVINwpLeW8vBvXzRViMZkI_E_u'
    'XZlQh8A7yHCv1RChmehuxBGctgltaTj8Zhppfqkm2D9OyR-9QhX7STOlRXiGaro8-37y9mTEzyJ-j3QY87COLVoSRom4'
    'EmqMwU3isGso7sEipt2Ib_osTF9yl2DrYG2ss29T-zFmHM6ZQzh3M2hvAJOOQLPfTAdlN26hdePmI1REubzf0fCqN8Bj'
    'R4ZCk4JeRXKZjvUTbnJ-WhRDyMFmBYHhAKG2Z7DWzIJo-WT-FUhlfoPUltA8Y5FbA8UUHh9jFbbtZN3Qu-R9eQ4FMF3v'
    'xbvuejTcP6eeJ84ygsnbJal3wBTsac5MIH7CaklQi6oLXo8e39Dvfb1hZ9CQ3QOexbahCO3JKW5fh3cVc3Rwa5FLukG5'
    'Q4XhXBrht2Z-UW4dcHOcr5mLRZSF_inm-tK7McrDovILLZMuwmsktl18xLQhNt9ybKsSgS4zVKDhWqC47k2M0uj6vYn1'
    'J2DxWbVHfrRlsuCMQG1tmDUuVsdCjs7S2ya5Vxj3FX2OPHpQHiMGOMChELOF7jNg0gLNdT2FaLb5-3Vs53fqk5udTHSn'
    'QAwSXSdB-_D8Cf0Pt3TcaXwzl8U5QD3vq7FWbEK_9P1LIFDq-Ay4WaLDe4Iq_cnruEeWyZR5EyTFW3zqe4v2k4vFKbRt'
    'ALhHaQ7minMw6NaBCbEjZmzBVTdEihWgRbTJrXhytx48xTFDsyN1GXqruG5wOw3t67hiqpsd1VpG_psKFvsBitdl4JrT'
    'vXU3Xa6cF_6XDe9x0dhu0t1RzM-aRVO-tOD_30AGKsELlShGbiYer4vZ8aWUn33NLUODKgdmXfYLy1dTeEhDD8isVnL-'
    'rYIbxjNAEsD0AiuKMqejourluDlut4eqyqtyV-Hf9vD6sjlsXjfbfbbbZJXaHrf74-F1tz1uNqnCJxF535RmII-HH51Q'
    'tBCt4Q3NPZHTJU2phhCjdJR4OVlnyvHKDjsRGuKhlY4Gt7FxjtNFG4Q-_mnjH2r_9H2DRCg135sqij5QGle26a1282tH'
    'rLq7DH6mu2-fdfHJNr2KtpuQ5WM3efdaCr8d8KOHZS_pfr99SQ-714MAcbVRZdDOOo_Zbrd5SV_3UCzeqHk_iX8D_rzn'
    'Vg=='
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
        "8",
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
                num_replicas=8,
                max_retries=max_retries,
                resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
                mounts=specs.parse_mounts(mounts or []),
            )
        ],
    )
