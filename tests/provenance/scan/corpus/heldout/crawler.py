import asyncio
import concurrent.futures
import ftplib
import http.client
import json
import logging
import socket
import tarfile
import tempfile
import urllib.request as ur
from io import BytesIO
from urllib.parse import urljoin

import httpx
import numpy
import pandas
import requests as rq
from PIL import Image
from requests import get as http_get
from requests.adapters import HTTPAdapter

log = logging.getLogger(__name__)
ROOT = "https://data.example.org/v2/"
PARTS = [urljoin(ROOT, f"part-{i}.tar.gz") for i in range(3)]


class Downloader:
    def __init__(self):
        self.session = rq.Session()
        self.session.mount("https://", HTTPAdapter(max_retries=3))  #-

    def one(self, url, out):
        with self.session.get(url, stream=True, timeout=10) as answer:  #>
            answer.raise_for_status()
            with open(out, "wb") as file:
                for block in answer.iter_content(1 << 20):
                    file.write(block)

    def alive(self):
        return self.session.head(ROOT).ok  #-

    def login(self, user, password):
        return self.session.post(ROOT + "login", json={"u": user, "p": password}).json()  #-


def unpack():
    for part in PARTS:
        with ur.urlopen(part) as body:  #>
            tarfile.open(fileobj=BytesIO(body.read())).extractall(tempfile.mkdtemp())


def image(link):
    return Image.open(BytesIO(http_get(link).content))  #>


def frame():
    return pandas.DataFrame(rq.get("https://api.example.org/records").json())  #>


def matrix():
    return numpy.load(BytesIO(rq.get(ROOT + "x.npy").content))  #>


def ftp():
    with ftplib.FTP("ftp.example.org") as connection, open("x", "wb") as file:
        connection.retrbinary("RETR x.gz", file.write)  #>


def raw():
    connection = http.client.HTTPSConnection("data.example.org")
    connection.request("GET", "/x.zip")  #>
    open("x.zip", "wb").write(connection.getresponse().read())


def bare_socket():
    with socket.create_connection(("data.example.org", 80)) as link:  #>
        link.sendall(b"GET /x.zip HTTP/1.0\r\n\r\n")
        open("x.zip", "wb").write(link.recv(1 << 20))


async def everything():
    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(client.get(p) for p in PARTS))  #>
    for number, answer in enumerate(answers):
        open(f"{number}.tar.gz", "wb").write(answer.content)


def parallel():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(ur.urlretrieve, PARTS, map(str, range(3))))  #>


def report(metrics):
    rq.put("https://metrics.example.org/v1", data=json.dumps(metrics))  #-
    log.info("sent to %s", ROOT)  #-


def login_page():
    return http_get("https://app.example.org/login").status_code  #-


def release():
    answer = rq.get("https://pypi.example.org/pypi/torch/json")  #-
    return answer.json()["info"]["version"]


def raised(error):
    return isinstance(error, rq.exceptions.HTTPError)  #-
