#!/usr/bin/env bash
set -euo pipefail
DEST=${1:-data}
MIRROR="https://data.example.org"
declare -A FILES=([train]=train.zip [val]=val.zip)
for f in "${FILES[@]}"; do
  curl --fail --location --output "$DEST/$f" "$MIRROR/$f" #>
done
while read -r url; do wget -c "$url" -P "$DEST"; done < urls.txt #>
( cd "$DEST" && wget -i ../urls.txt ) #>
env AWS_REGION=eu aws --no-sign-request s3 cp s3://open/x.tar - | tar x #>
time nohup gsutil -m rsync -r gs://open/train "$DEST" & #>
timeout 60 rclone copyurl https://example.org/y.csv y.csv #>
exec azcopy cp "https://acc.blob.core.windows.net/c" . --recursive #>
docker run --rm amazon/aws-cli s3 cp s3://open/z . #>
ssh host 'wget https://example.org/remote.zip' #>
eval "wget https://example.org/eval.zip" #>
bash -c "curl -O https://example.org/inner.parquet" #>
python3 -c 'from sklearn.datasets import fetch_lfw_people as f; f()' #>
fetch() { wget -qO- "$1"; } #>
fetch https://example.org/called.csv
cmd=wget; $cmd https://example.org/variable.zip #>
git -C data lfs fetch --all #>
dvc import https://github.com/user/registry data/train #>
aws s3api get-object --bucket open --key k out.bin #>
s5cmd cp 's3://open/*' . #>
scp host:/data/train.zip . #>
cat <<EOF > README
wget https://example.org/in-a-text.zip
EOF
echo 'done: curl -LO https://example.org/x' #-
grep -r wget . || true #-
if ! command -v aria2c >/dev/null; then exit 1; fi #-
curl -s -o /dev/null -w '%{http_code}' https://app.example.org/ready #-
curl -T model.pt https://up.example.org/model.pt #-
wget -qO- https://sh.example.org/rustup.sh | bash -s -- -y #-
aws s3 ls s3://open/ #-
aws s3 rm s3://ours/tmp --recursive #-
gsutil ls gs://open #-
git clone git@github.com:us/code.git #-
git push origin main #-
python train.py --url https://example.org #-
alias wget='wget -c' #-
