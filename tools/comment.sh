#!/usr/bin/env bash
# Put a comment on a pull request, or renew the one put there before.
# usage: comment.sh FILE_WITH_NUMBER FILE_WITH_MARKDOWN; GH_TOKEN, REPOSITORY and HEAD_SHA in the environment
set -euo pipefail
number=$(head -c 20 "$1" | tr -d '[:space:]')
case $number in
  "" | *[!0-9]*) echo "not a pull request: $number" >&2; exit 1 ;;
esac
# the number comes from the pull request's own run: its head has to be the commit that ran
head=$(gh api "repos/$REPOSITORY/pulls/$number" --jq .head.sha)
if [ "$head" != "$HEAD_SHA" ]; then
  echo "pull request $number is at $head by now, the report is of $HEAD_SHA"
  exit 0
fi
mine='.[] | select(.user.login == "github-actions[bot]") | select(.body | startswith("<!-- churn: gate report -->")) | .id'
# all of them, and no `head`, which would break the pipe of a second page: two runs can have put one each
answer=$(gh api --paginate "repos/$REPOSITORY/issues/$number/comments" --jq "$mine")
read -r -d '' -a before <<<"$answer" || true
if [ "${#before[@]}" -eq 0 ]; then
  gh api --method POST "repos/$REPOSITORY/issues/$number/comments" --field "body=@$2" --silent
  exit
fi
gh api --method PATCH "repos/$REPOSITORY/issues/comments/${before[0]}" --field "body=@$2" --silent
for older in "${before[@]:1}"; do # a report of another commit misleads
  gh api --method DELETE "repos/$REPOSITORY/issues/comments/$older" --silent
done
