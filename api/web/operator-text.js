// The operator's page in Chinese. Its English text is in operator.html and operator.js, and is the
// key here. {name} is replaced by a value.

import { language } from "./text.js";

const CHINESE = {
  "Operator": "服务管理",
  "Operator rights": "管理员权限",
  "Operator · Impasto": "服务管理 · Impasto",
  "Forget my key": "清除密钥",
  "Use this key": "确定",
  "This key is not valid. Enter the key of an operator.": "密钥无效，请输入管理员密钥。",
  "Enter the key of an operator.": "请输入管理员密钥。",
  "This command creates one:": "创建密钥的命令：",
  "This key may not operate the service. Enter the key of an operator.":
    "这个密钥没有管理权限，请输入管理员密钥。",
  "Accepts jobs": "正在接收任务",
  "Paused since {time}": "已暂停接收（自 {time}）",
  "Accept jobs again": "恢复接收",
  "Pause: accept no new jobs": "暂停接收新任务",
  "{text}: sure?": "再点一次：{text}",
  "Waiting": "排队",
  "Running": "运行中",
  "Workers": "工作进程",
  "One job takes": "平均耗时",
  "Wait, median": "等待时间（中位数）",
  "Wait, 95 %": "等待时间（P95）",
  "Ended, 24 h": "24 小时内结束",
  "Failed, 24 h": "24 小时内失败",
  "Disk free": "磁盘可用",
  "{free} of {total}": "{free}，共 {total}",
  "a bucket": "存储桶",
  "Quota": "存储配额",
  "none": "无",
  "Results kept": "保存中的成品",
  "Expire in 24 h": "24 小时内到期",
  "Pictures in use": "使用中的图片",
  "Webhooks waiting": "待发送的回调",
  "never": "从未",
  "{n} s": "{n} 秒",
  "{n} min": "{n} 分钟",
  "{n} h": "{n} 小时",
  "Jobs per hour": "每小时任务数",
  "■ succeeded": "■ 成功",
  "■ failed": "■ 失败",
  "Wait before the start": "开始前的等待",
  "■ median": "■ 中位数",
  "■ 95 %": "■ P95 分位",
  "Last 24 hours: {succeeded} jobs succeeded, {failed} failed.":
    "最近 24 小时：成功 {succeeded} 个任务，失败 {failed} 个。",
  "Last 24 hours: the median wait was {p50}, 95 % waited at most {p95}.":
    "最近 24 小时：等待的中位数为 {p50}，95% 的任务等待不超过 {p95}。",
  "Failures": "失败原因",
  "None in the last 24 hours.": "最近 24 小时没有失败。",
  "Code": "错误代码",
  "Jobs": "任务数",
  "No worker is connected: jobs wait until one is.": "没有工作进程在线，任务会一直排队。",
  "Worker": "工作进程",
  "Device": "设备",
  "Network": "网络",
  "Runs": "当前任务",
  "Up to": "最大尺寸",
  "Pools": "机器组",
  "Pool": "机器组",
  "Pool (optional)": "机器组（可选）",
  "State": "状态",
  "{n} px": "{n} 像素",
  "{state}: {reason}": "{state}（原因：{reason}）",
  "all": "全部",
  "active": "正常",
  "paused": "已暂停",
  "draining": "完成当前任务后退出",
  "drained": "已退出",
  "out of service": "故障停用",
  "Pause": "暂停",
  "Drain": "完成后退出",
  "Resume": "恢复",
  "Progress": "进度",
  "idle": "空闲",
  "Queue": "队列",
  "No job waits.": "没有任务在排队。",
  "Place": "位置",
  "Job": "任务",
  "Caller": "调用方",
  "Priority": "优先级",
  "Size": "尺寸",
  "Waits": "已等待",
  "Actions": "操作",
  "First": "移到最前",
  "Last": "移到最后",
  "Cancel": "取消任务",
  "Show more": "显示更多",
  "API keys": "API 密钥",
  "Limits of each key: {submissions} submissions and {requests} other requests a minute, {jobs} unfinished jobs, {uploads} uploads, {bytes}.":
    "每个密钥的限额：每分钟 {submissions} 次提交、{requests} 次其他请求；{jobs} 个未完成的任务；{uploads} 个上传文件，共 {bytes}。",
  "Name": "名称",
  "Key": "密钥",
  "Rights": "权限",
  "Last use": "最近使用",
  "Uploads": "上传",
  "Revoke": "吊销",
  "Name of a new key": "新密钥的名称",
  "Highest priority": "最高优先级",
  "low": "低",
  "normal": "普通",
  "high": "高",
  "operator": "管理员",
  "Create": "创建",
  "The new key, shown only this once:": "新密钥只显示这一次：",
  "Hide": "隐藏",
};

// Returns the English text, or its translation, with its {values}.
export function tr(text, values = {}) {
  const found = (language !== "en" && CHINESE[text]) || text;
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// Translates the texts that the document has.
export function translateDocument() {
  document.documentElement.lang = language;
  document.title = tr(document.title);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { data } = walker.currentNode;
    walker.currentNode.data = data.replace(data.trim(), () => tr(data.trim()));
  }
  for (const name of ["aria-label", "placeholder"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      element.setAttribute(name, tr(element.getAttribute(name)));
    }
  }
}
