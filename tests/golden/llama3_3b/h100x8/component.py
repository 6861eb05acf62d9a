# A torchx component: one training job of titan-recipes, complete in this file.
#   job     "llama3_3b@0.1.0, plan h100x8"
#   digest  "0a687021ed0ebccb248fe6ca0f1e05473c1c3bd175e8b835119d820edb694ce2"
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
    'eNq1WEtv67wR3fNXGFo3juRH4hT4CvQrUHRRoMsugoCgqJFNhBJ1KSqPu-hv7xlSLzu5RbtoFrE5fMyDZ84M_exJm45e'
    'RKsa2vy2yaxVjdrLfZmJN_K9cS1L822xzTPRD02j_CdL_s7rNvvtbrP_fVN712x67VXQlw12_OXwx83D46Y01vIBwb1S'
    '22eioloNNsjOqnjqpcjzj1MmPP0YjKeeZX_6DboyEdSZh89ig7_RqOwPadR5Cl6ZFuMXnImhVoEq3p0J8dy4iuyLqFVj'
    '7OfiEtSbBsN9_rgTrbTqE-5hvDthdCFVxcEBg9e3eXwS_E2mnQWW1nU7jk7F0068Oa1K2ZuflOZ3xwfROt9I6nh7QXf5'
    'UXjXkQwXCgqiY85_21wEQ5KakqrKtNHX4AcSl1qqvqfQy06FS3Iphg8q_EqmXYvrCcmF5xfRedMGqWpIZJobr65Wtqcp'
    'KttoSq-VhU4OkQ7Oc0x2MMi6d1njKuQsxp2LizlfbsQHiJ03Z9MqKxv1IXvMWmqnoIhnvmBACipjFMS5G-AQTGNRDCsk'
    'EwKuYPWPljZxkas3BNVh87e4RDzTR0c6vKRopNN6gqtV_JrO47h2pF5lQ43zn_JsylHau8FrmiCSQvyyRJYn_nW_1Upf'
    '6D6YoNq7lBj9fULP_eTw_bxnG0Oa8ZV56hwf0eCO7-KG-5gfd8iPu_3vrLJSQb2MZox3FugjyFeKfvN3BOIy1LWlCQx9'
    '8AQUt-f5HqOBAKBPnrRDIzvvNEZ3Bcfdu9qku6VWlZbkLJmP6NUb0OgVzJC1s1VyPq2bJjIxjfnm-QrzSeIlYGDeIt4X'
    '2bvyzdAxkibF4w30rer6iwvX6m8mV3bczMR8RrYbjduy7ryyZ9QTAAbnS6d8NYWtMn2c0s465AxnxtcAlCulAWQXpTXW'
    'K2ulV-1rP28YNb2rtipXGeW6YBoGwkKef65U889MWJ9Ql-d7UQISRRw-xe-79P0oFoY4ifcIdVmByD7jfCFM01lqqA0q'
    'jBxcDz1VmSDlLQIUqJOmlaXSr-_J98kui8QASqrBsmnpZuL6SGg5mMcFJO4kAXCiXjgNTVGAfEmi8NlFv7TrTUuZABYl'
    'jp-ZAD4y7CIbR9QxypFacc8hm4Yr3rIgTAurUSgm2tyJs3XlrfRY7MQNrzDVMLmOzDQ5UDwg0NMl6W6QDjnk1BKSanKD'
    'xWG_Yz8-CLzBKc40Cfu84mOzMi4pHr4u8Qiovj7lrCc4HnMeVFQO59VFTGHZchjYoggVpOy786-JuZmuwNRwBey9iNMJ'
    'HaKd8mEReaqJozRfQcp72G8tWdM36Q7kJGFqsobrI8w7e0p5e72kvwBAyzROrPuqw840kYoKUmPEWTaWcRSmmHvLQWsN'
    'Yw5a1_fzgtuMUv1nq-XNKSv3O3jU0rfng3sHpqcfYymIXMwrw1gPv2yuje8DUK_OsIpg1dwBFN-stup_WsyTqSTxlhTE'
    'r-umtOQgFn8tUBd-vUbq_i2lzNc1jdHeXWXLd9q4YPqwjB2aAqu6iSVROmMB-i66X-YYvchPlHWdKJPboqCMzb6u9aCX'
    'wBwfLi7iBeIzCIA8yOvGppXOceo_YOp2s3ZNEwmQ2qgHsW8rYJSLBqKoXzsH6p9K4eT3iL0adDunpVyWz53YUh5Wk5nA'
    'f_JvysYiBN5BhgejxggtPHclTuB0bWxH4-FX00jzSz3D_uuU_DEolLCftFBagmcspeuzbyevT0b8HOL3lQ5THjapN8vi'
    'KBOvhApjcZM47DVW9mgRs27CN31oO1TcIrgmWpuK7PPce0wZh3OWEC6tDHobwKQn0Ow301HZlVto27jziPVQru93Mrwn'
    'S7E3QTWfvqJbkVyoUwl1XcaECwnio5nTNIHnAKRuYMg2zIVo-mT5GalleYE0jtA8Y5HfAssUnx5TJXbdbOPYvpRDdY5V'
    'MN8exZvpBzTcP-e2J80yjim4NbX3QBbsac9MI2FGbEVQi9ILdk9-X5HwbdVhZ9CT3cKexa6lBPDZKW5gx1cVM3V0a5VR'
    'pkXRQ53hjJpAuGWWUX4b0XNaLptLRpLFFipl_Nq7KcrjouoTXZPR8TWSOi8-Yt6Q2m85dVaZQKMZ69B4LVDcDDZFaXL9'
    '1sTmA-D4qLsTP9kKqTkvUGFb5o6LM6mco7kMrs1uFaZ9eiiRTV-Up4gBDnAoxmyl-wyYdMB008whWmz-fh3b-Z367Gon'
    '091LpAeJxpOgfXwA9fFVi76O-41v5oo0B6iXQz13XfwM_cVjIBLr9BK4WmLik4Jq88HruE2W2Zx_MyTFc3rnB4cWlEvG'
    'S-zdAPCAAh3NFedo0LUDM2InzDjNtTdGihWgT3TZtXh2txk9xTFjyyNNFTustG50O4897LRirp49NUYmFpzLFvsBojdV'
    'ZJyXW-uuWl25LPwvu97Tqrvd5YeTWF42q858bcH_v42MVIJHKlGK3EI8wejF8bWUX37tNU-DKkdmXXcN64dTfEpDD8is'
    'UXL5rYLbxjNAEn9xUg-nx3xXUJVTqXW5O5xqetAqrwvKj4fHvS70vqyKxyOdytP-WBRP1WmXU1U-PB00oaqVQ1vZkTxu'
    'f3FC5UKwxlc0N0beVDRnGiKM0lHh8eS8rZYbi03x2E4nc7vUPMdZ3UVZSB9d-qD08asXDrKgMnxpSush8hkXtwkA-93V'
    'rx2p8h6Kp8M-P3z3sEuPtvlddNxxhk_95PVzKf5ywK-epKfYPR6eTruDAGV1SV3UzOB8fNzvdsXxhHeqeKb27UX8G3AC'
    '5p4='
)
RECIPE = 'llama3_3b'
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
