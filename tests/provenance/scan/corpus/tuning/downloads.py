import io
import shutil
import subprocess
import os
import urllib.request
import zipfile
from urllib.request import urlopen, urlretrieve
import urllib

import aiohttp
import gdown
import httpx
import pooch
import requests
import wget

BASE = "https://example.org/data"
URL = BASE + "/train.zip"
HEALTH = "http://localhost:8080/health"

urlretrieve(URL, "train.zip")  #>
urllib.request.urlretrieve(f"{BASE}/{os.environ['PART']}.npz", "x.npz")  #>
wget.download("https://example.org/x.csv")  #>
gdown.download(id="abc", output="x.zip")  #>
gdown.cached_download("https://drive.google.com/uc?id=abc", "x.zip", md5="0" * 32)  #>
pooch.retrieve("https://example.org/x.nc", known_hash="sha256:" + "0" * 64)  #>
pooch.retrieve(url=URL, known_hash=None)  #>
POOCH = pooch.create(path="cache", base_url="https://example.org/v1/", registry={})  #>


def fetch():
    answer = requests.get(URL, stream=True)  #>
    with open("train.zip", "wb") as file:
        shutil.copyfileobj(answer.raw, file)


def fetch_with_session():
    session = requests.Session()
    body = session.get("https://example.org/a.parquet").content  #>
    return io.BytesIO(body)


def opened():
    with urlopen("https://example.org/x.tar.gz") as body:  #>
        return body.read()


def streamed(url):
    with httpx.stream("GET", url) as answer, open("x.bin", "wb") as file:  #>
        for chunk in answer.iter_bytes():
            file.write(chunk)


async def many(urls):
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(url) as answer:  #>
                with open("x.jpg", "wb") as file:
                    file.write(await answer.read())


def unpacked():
    archive = zipfile.ZipFile(io.BytesIO(requests.get(URL).content))  #>
    archive.extractall("data")


subprocess.run(["wget", "-q", "https://example.org/y.zip"], check=True)  #>
subprocess.check_call("curl -LO https://example.org/z.tar", shell=True)  #>
os.system(f"aws s3 cp s3://bucket/{URL} .")  #>


def healthy():
    return requests.get(HEALTH, timeout=1).status_code == 200  #-


def notify(text):
    requests.post("https://hooks.example.org/x", json={"text": text})  #-


def version():
    return requests.get("https://api.example.org/version").json()["version"]  #-


def token():
    answer = httpx.post("https://login.example.org/token", data={"a": "b"})  #-
    return answer.json()


def listed(client):
    return client.get("https://example.org/x.zip")  #-


subprocess.run(["ls", "-l", "data"], check=True)  #-
os.system("echo wget https://example.org/x.zip")  #-
quoted = urllib.parse.quote("https://example.org/x.zip")  #-
cache = {}
cache.get("https://example.org/x.zip")  #-
message = "wget https://example.org/x.zip"  #-
pooch.os_cache("ours")  #-

pooch.HTTPDownloader()("https://example.org/x.zip", "x.zip", None)  #>
downloader = pooch.HTTPDownloader(progressbar=True)
downloader("https://example.org/y.zip", "y.zip", None)  #>
POOCH.fetch("x.zip", downloader=pooch.HTTPDownloader(auth=("a", "b")))  #-


def sent():
    session = requests.Session()
    wanted = requests.Request("GET", "https://example.org/sent.zip").prepare()
    return io.BytesIO(session.send(wanted).content)  #>


def pooled():
    import urllib3

    pool = urllib3.HTTPSConnectionPool("example.org")
    return io.BytesIO(pool.request("GET", "/pooled.zip").data)  #>


def told():
    session = requests.Session()
    return session.send(requests.Request("GET", "https://api.example.org/version").prepare()).json()  #-


os.execlp("wget", "wget", "https://example.org/executed.zip")  #>
os.spawnlp(os.P_WAIT, "ls", "ls", "wget", "https://example.org/x.zip")  #-
